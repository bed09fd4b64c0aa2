"""What a server on a CPU finds in its environment."""

import os

import pytest

from respec_server import cpu_environ
from respec_server.cpu_environ import CPU_ENVIRON, serve_with_cpu_environ, with_cpu_environ

OURS = CPU_ENVIRON["GLIBC_TUNABLES"]


def test_what_is_missing_is_added_and_the_rest_stays():
    found = with_cpu_environ({"HOME": "/home/me"})
    assert found == {"HOME": "/home/me", **CPU_ENVIRON}


def test_what_the_user_set_wins():
    assert with_cpu_environ({"OMP_WAIT_POLICY": "ACTIVE"})["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", ""),
        ("glibc.malloc.hugetlb=1", f"glibc.malloc.hugetlb=1:{OURS}"),
        ("glibc.malloc.tcache_count=0", "glibc.malloc.tcache_count=0"),
        (f"glibc.malloc.hugetlb=1:{OURS}", f"glibc.malloc.hugetlb=1:{OURS}"),
    ],
)
def test_tunables_share_one_variable(given, found):
    assert with_cpu_environ({"GLIBC_TUNABLES": given})["GLIBC_TUNABLES"] == found


@pytest.mark.parametrize("given", [{}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}])
def test_a_process_starts_anew_once(given, monkeypatch):
    started = []
    monkeypatch.setattr(os, "execve", lambda *all_of_it: started.append(all_of_it))
    monkeypatch.setattr(cpu_environ.os, "environ", given)
    serve_with_cpu_environ(["--demo", "--port", "1"])
    program, command, environ = started.pop()
    assert program == command[0]
    assert command[-4:] == ["serve", "--demo", "--port", "1"]
    monkeypatch.setattr(cpu_environ.os, "environ", environ)
    serve_with_cpu_environ(["--demo", "--port", "1"])
    assert started == []
