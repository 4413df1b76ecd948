import hashlib

from trainer.math.seeds import derive_seed


def test_a_seed_is_48_bits_of_its_parts() -> None:
    assert derive_seed(7, "round", 1) == int(hashlib.sha256(b"7-round-1").hexdigest()[:12], 16)


def test_another_part_gives_another_seed() -> None:
    assert len({derive_seed(0, 1), derive_seed(0, 2), derive_seed(1, 1), derive_seed(0, "ppo", 1)}) == 4
