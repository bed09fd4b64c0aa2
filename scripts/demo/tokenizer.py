"""The demo pair's tokenizer: byte-level BPE with 512 entries, trained from text made here.

Byte-level means that any text encodes and decodes without loss. What lets a small model learn the
task: digits are single tokens, and a step such as `` +7`` is one, so that finding it behind its
letter in the prompt takes one attention head that looks for the letter and copies what follows.

Text is cut into words as Qwen2 cuts it. transformers does that for every Qwen2 checkpoint whatever
its ``tokenizer.json`` says, so a tokenizer trained on other cuts would be served another one. The
steps are added tokens, which are found before any cut.
"""

import json
import random
from pathlib import Path

from demo.problems import training_problem
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from sglang_respec.demo_task import MAX_OPERAND, worked_answer

VOCAB_SIZE = 512
END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
MAX_POSITIONS = 2048
CORPUS_PROBLEMS = 300
STEPS = [f" {sign}{operand}" for sign in "+-" for operand in range(1, MAX_OPERAND + 1)]

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

# Everyday English, so that text outside the task does not fall apart into single bytes.
_ENGLISH = """
The user asks a question and the assistant gives a short answer. It is good to think before you
write, and it is better to show the work. There are many ways to say the same thing, so the words
that you choose can be your own. When we have a number and we want another number, we can add,
subtract, or count. If this is right then that will be right as well, but if there is an error in
one line it stays in every line after it. You are a helpful assistant. This system has a server,
a model, a request, and a response. They would like to know what time it was, who made it, where
it came from, how it should work, and which part of the text is not clear. Please explain the
reason for the result. Some people make mistakes, most of them do not mean to; other people find
the mistakes and correct them. Thank you for your message, here is the information about it.
"""


def build_tokenizer(directory: Path) -> None:
    """Train the tokenizer and write the files that ``AutoTokenizer`` reads."""
    qwen2 = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = qwen2.pre_tokenizer, qwen2.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(STEPS),
        min_frequency=1,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(step, normalized=False) for step in STEPS])
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise RuntimeError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, not {VOCAB_SIZE}; "
            "give the corpus in scripts/demo/tokenizer.py more text"
        )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())


def _corpus() -> list[str]:
    rng = random.Random("tokenizer")
    problems = [training_problem(seed) for seed in range(CORPUS_PROBLEMS)]
    task = [f"user\n{p.prompt}\nassistant\n{worked_answer(p, rng)}\nsystem\n" for p in problems]
    return [*task, *[_ENGLISH] * 20]


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": CHAT_TEMPLATE,
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
