import psutil

from trainer.model.memory import release_memory


def test_pages_between_what_is_still_held_go_back_to_the_system():
    process = psutil.Process()
    blocks = [bytearray(3000) for _ in range(60_000)]  # 180 MB
    kept = blocks[::50]  # holds the heap's end, and a page here and there
    del blocks
    before = process.memory_info().rss
    assert release_memory()
    assert before - process.memory_info().rss > 80 << 20
    assert len(kept) == 1200
