"""Starts servers as forks of one process that has imported SGLang.

Importing SGLang takes half a minute on two slow cores, and a test session starts a dozen
servers. `python launchpad.py serve SOCKET` imports once and waits; `python launchpad.py
client SOCKET respec serve ...` asks it for a fork that runs this command, lends it its own
output and environment, passes signals on, and ends with its exit code. What a fork runs is the
command's own entry point, which loads SGLang's plugins as ever.
"""

import gc
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

MESSAGE_BYTES = 1 << 20
APPENDED_PATHS = "LAUNCHPAD_APPENDED_PATHS"


def import_sglang() -> None:
    """Everything that a server and its hooks import, with no plugin loaded."""
    import sglang.cli.serve
    import sglang.launch_server  # noqa: F401

    from sglang_respec.upstream.hooks import hooks_for

    for hook in hooks_for(enabled=True, portable=True):
        pkgutil.resolve_name(hook.target)


def serve(path: str) -> None:
    """Forks a command per connection and reports its end; leaves when its starter is gone."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    import_sglang()
    gc.freeze()  # else a fork that ends walks, and so copies, all that was imported
    starter = os.getppid()
    children: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        while os.getppid() == starter:
            for key, _ in waiting.select(timeout=0.2):
                if key.fileobj is listener:
                    client, _ = listener.accept()
                    children[_fork(listener, client)] = client
                    waiting.register(client, selectors.EVENT_READ)
                else:
                    waiting.unregister(key.fileobj)  # the client is gone: so is its server
                    for pid in [p for p, c in children.items() if c is key.fileobj]:
                        os.killpg(pid, signal.SIGKILL)
            _report_ends(children, waiting)


def _fork(listener: socket.socket, client: socket.socket) -> int:
    message, streams, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 2)
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        client.sendall(f"{pid}\n".encode())
        return pid
    os.setsid()
    listener.close()
    client.close()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
    request = json.loads(message)
    os.environ.clear()
    os.environ.update(request["environ"])
    # What a starting interpreter does with the first, and with the folders of `.pth` files.
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path += filter(None, os.environ.get(APPENDED_PATHS, "").split(os.pathsep))
    sys.exit(_run(request["command"]))


def _run(command: list[str]) -> int:
    program, *arguments = command
    sys.argv = command
    if program == "respec":
        from respec_server.cli import main

        return int(main(arguments) or 0)
    if program == "python":
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
        return 0
    from sglang.cli.main import main as sglang_main

    return int(sglang_main() or 0)


def _report_ends(children: dict[int, socket.socket], waiting: selectors.BaseSelector) -> None:
    for pid in list(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
            continue
        client = children.pop(pid)
        if client in waiting.get_map():
            waiting.unregister(client)
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        client.close()


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    for _ in range(100):
        try:
            connection.connect(path)
            break
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.1)  # the launchpad is starting
    return connection


def client(path: str, command: list[str]) -> int:
    """Runs `command` in a fork of the launchpad; its output is this process's."""
    connection = _connect(path)
    request: dict[str, Any] = {"command": command, "environ": dict(os.environ)}
    socket.send_fds(connection, [json.dumps(request).encode()], [1, 2])
    answers = connection.makefile()
    pid = int(answers.readline())

    def pass_on(number: int, _: FrameType | None) -> None:
        os.kill(pid, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = int(answers.readline() or -signal.SIGKILL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    mode, socket_path, *rest = sys.argv[1:]
    Path(socket_path).parent.mkdir(parents=True, exist_ok=True)
    sys.exit(serve(socket_path) if mode == "serve" else client(socket_path, rest))
