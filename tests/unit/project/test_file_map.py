"""The file map is that of the code, and every module has a sentence in it."""

from __future__ import annotations

import pytest

from tests.file_map import PAGE, file_map
from tests.support.source_tree import Module, modules

#: Longest sentence that one takes in at a glance, in characters.
LONGEST = 160


def test_the_page_is_up_to_date() -> None:
    assert file_map(modules()) == PAGE.read_text(), "write it anew: python -m tests.file_map"


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.file)
def test_a_module_says_in_one_sentence_what_it_is(module: Module) -> None:
    if "/migrations/versions/" in module.file and module.path.name == "__init__.py":
        return
    assert module.sentence.endswith("."), module.sentence
    assert len(module.sentence) <= LONGEST
    question = module.sentence.split(" ", 1)[0]
    assert question not in {"What", "Who", "Whose", "How", "When", "Why", "Which"}, module.sentence
