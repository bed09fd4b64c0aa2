"""Seeds: drawn, derived, and the same in every process."""

from hypothesis import given
from hypothesis import strategies as st

from sglang_respec.sampling.seeds import SEED_BITS, draw_seed, sample_seed, seed_of_name

SEEDS = st.integers(-(2**63), 2**63 - 1)


def test_drawn_seeds_differ_and_fit_a_signed_word() -> None:
    drawn = {draw_seed() for _ in range(1000)}
    assert len(drawn) == 1000
    assert all(0 <= seed < 2**SEED_BITS for seed in drawn)
    assert max(drawn) > 2 ** (SEED_BITS - 2), "all bits are used"


@given(SEEDS)
def test_the_first_sample_keeps_the_seed(seed: int) -> None:
    assert sample_seed(seed, 0) == seed


@given(SEEDS, st.integers(1, 1000))
def test_derived_seeds_fit_and_are_reproducible(seed: int, sample: int) -> None:
    derived = sample_seed(seed, sample)
    assert 0 <= derived < 2**SEED_BITS
    assert derived == sample_seed(seed, sample)


def test_derived_seeds_are_those_of_splitmix64() -> None:
    """Published outputs of the generator from state 1234567, top 63 bits."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [sample_seed(1234567, i) for i in (1, 2, 3)] == [value >> 1 for value in published]


def test_neighbouring_seeds_and_samples_share_no_seed() -> None:
    derived = [sample_seed(seed, sample) for seed in range(-50, 50) for sample in range(64)]
    assert len(set(derived)) == len(derived)


def test_a_name_has_one_seed() -> None:
    """A constant, since ranks are processes: a hash that is salted per process would differ."""
    assert seed_of_name("HEALTH_CHECK_0") == seed_of_name("HEALTH_CHECK_0")
    assert (
        seed_of_name("a") == int.from_bytes(bytes.fromhex("ca978112ca1bbdca"), "little") >> 1
    )  # sha256("a") begins so
    assert seed_of_name("a") != seed_of_name("b")
