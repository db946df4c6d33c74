from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.failure_contract import Category
from jobs.config.templates import fill, parse_documents
from jobs.errors import PermanentError
from tests.support.cluster.templates import shape

NAMES = ("a", "b")
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.sampled_from(["${a}", "x-${b}-${a}", "$", "$${a"])
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
hostile = st.text() | st.sampled_from(["}\n- x: 1", "${b}", "${nope}", "'\"", "---\nkind: Pod", "\x00"])


def placeholders_known(tree: Any) -> bool:
    try:
        fill("t", tree, dict.fromkeys(NAMES, ""))
    except PermanentError:
        return False
    return True


@given(trees.filter(placeholders_known), hostile, hostile)
def test_no_value_changes_the_structure(tree: Any, a: str, b: str) -> None:
    assert shape(fill("t", tree, {"a": a, "b": b})) == shape(tree)


def test_values_are_not_expanded_again() -> None:
    assert fill("t", ["${a}${b}"], {"a": "${b}", "b": "x"}) == ["${b}x"]


def test_the_template_itself_stays_as_it_was() -> None:
    tree = {"x": ["${a}"]}
    fill("t", tree, {"a": "1"})
    assert tree == {"x": ["${a}"]}


def test_an_unknown_placeholder_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(PermanentError) as caught:
        fill("manifests/x.yaml", {"k": ["${nope}"]}, {"a": "", "b": ""})
    assert caught.value.evidence == "manifests/x.yaml uses unknown ${nope}; allowed are a, b"
    assert caught.value.category is Category.PERMANENT_INVALID_REQUEST


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "must hold Kubernetes objects"),
        (b"# nothing\n---\n", "must hold Kubernetes objects"),
        (b"- a\n- b\n", "must hold Kubernetes objects"),
        (b"text", "must hold Kubernetes objects"),
        (b"a: [", "is not YAML"),
        (b"\xff\xfe\xff", "is not YAML"),
        (b"a: !!python/object/apply:os.system [id]", "is not YAML"),
    ],
)
def test_a_template_that_does_not_parse_is_a_permanent_error(content: bytes, problem: str) -> None:
    with pytest.raises(PermanentError, match="administrator must correct it") as caught:
        parse_documents("manifests/x.yaml", content)
    assert caught.value.evidence.startswith(f"manifests/x.yaml {problem}")


def test_empty_documents_are_skipped() -> None:
    assert parse_documents("t", b"---\n---\na: 1\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
