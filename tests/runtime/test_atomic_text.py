"""A file is read by several processes while another rewrites it."""

import threading

from redi.runtime.atomic import write_text


def test_readers_see_the_old_or_the_new_text_and_nothing_is_left_over(tmp_path):
    path, texts = tmp_path / "config.gin", [letter * 200_000 for letter in "ab"]
    write_text(path, texts[0])
    seen, over = set(), threading.Event()

    def read() -> None:
        while not over.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        write_text(path, texts[number % 2])
    over.set()
    reader.join()
    assert seen and seen <= set(texts)
    assert [each.name for each in tmp_path.iterdir()] == ["config.gin"]
