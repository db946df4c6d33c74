from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.local import (
    buildah,
    cgroups,
    context,
    fingerprint,
    golang,
    images,
    leftovers,
    programs,
    settings,
)
from deploy.local.errors import LocalClusterError
from deploy.local.paths import Layout

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(
        checkout=CHECKOUT,
        cache=tmp_path / "cache",
        state=tmp_path / "state",
        run=tmp_path / "run",
    )


def pinned(module: str, dependency: str) -> str:
    text = (CHECKOUT / "deploy/local/programs" / module / "go.mod").read_text()
    found = re.search(rf"^\s*{re.escape(dependency)} (\S+)", text, re.MULTILINE)
    assert found, f"{module}/go.mod does not require {dependency}"
    return found[1]


def test_parts_with_moved_borders_have_another_fingerprint() -> None:
    assert fingerprint.of_parts(["ab", "c"]) != fingerprint.of_parts(["a", "bc"])


def test_the_order_in_which_files_are_found_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    files = [("a", tmp_path / "a"), ("b", tmp_path / "b")]
    assert fingerprint.of_files(files) == fingerprint.of_files(files[::-1])


def test_an_executable_bit_changes_the_fingerprint(tmp_path: Path) -> None:
    script = tmp_path / "start.sh"
    script.write_text("exit")
    before = fingerprint.of_files([("start.sh", script)])
    script.chmod(0o755)
    assert fingerprint.of_files([("start.sh", script)]) != before


def test_the_same_files_in_another_checkout_have_the_same_fingerprint(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "go.mod").write_text("module x")
    keys = {fingerprint.of_files([("go.mod", tmp_path / n / "go.mod")]) for n in ("one", "two")}
    assert len(keys) == 1


def test_every_program_has_a_tool_line_in_its_go_mod() -> None:
    for module in (*programs.MODULES, programs.KWOK):
        text = (CHECKOUT / "deploy/local/programs" / module.name / "go.mod").read_text()
        for package in module.packages.values():
            assert package in text


def test_the_versions_we_name_are_those_of_the_go_modules() -> None:
    assert pinned("kubernetes", "k8s.io/kubernetes") == settings.KUBERNETES_VERSION
    assert pinned("keda", "github.com/kedacore/keda/v2") == f"v{settings.KEDA_VERSION}"
    assert pinned("coredns", "github.com/coredns/coredns") == f"v{settings.COREDNS_VERSION}"


def test_all_staging_modules_of_kubernetes_are_replaced_by_one_version() -> None:
    text = (CHECKOUT / "deploy/local/programs/kubernetes/go.mod").read_text()
    versions = set(re.findall(r"k8s\.io/\S+ => k8s\.io/\S+ (v\S+)", text))
    assert versions == {settings.KUBERNETES_VERSION.replace("v1.", "v0.")}


def test_go_mod_and_ldflags_are_part_of_a_programs_key(layout: Layout) -> None:
    module = programs.COREDNS
    other = programs.Module(module.name, module.packages, module.usual, ldflags="-X a=b")
    assert module.key(layout) != other.key(layout)


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `go build` that writes its -o and fails if it was told to."""
    go = tmp_path / "go"
    script = 'while [ "$1" != -o ]; do shift; done\necho built >"$2"\n[ ! -e "$0.fails" ]\n'
    go.write_text(f"#!/bin/sh\n{script}")
    go.chmod(0o755)
    monkeypatch.setattr(golang, "find", lambda layout: go)
    return go


def test_what_is_built_on_need_is_built_once(
    layout: Layout, fake_go: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = programs.ensure_on_need(layout, programs.KWOK)
    assert (built / "kwok").read_text() == "built\n"
    assert "Build kwok from the Go modules" in capsys.readouterr().out
    fake_go.unlink()
    assert programs.ensure_on_need(layout, programs.KWOK) == built
    assert capsys.readouterr().out == ""
    assert not layout.state.exists(), "who is not root has only the cache"


def test_a_build_on_need_that_failed_or_was_killed_leaves_nothing_that_counts(
    layout: Layout, fake_go: Path
) -> None:
    killed = layout.cache / "programs" / "kwok-unfinished-1"
    killed.mkdir(parents=True)
    refused = fake_go.with_name("go.fails")
    refused.touch()
    with pytest.raises(LocalClusterError, match="exit code 1"):
        programs.ensure_on_need(layout, programs.KWOK)
    refused.unlink()
    programs.ensure_on_need(layout, programs.KWOK)
    found = {path.name for path in (layout.cache / "programs").iterdir() if path.is_dir()}
    assert found == {f"kwok-{programs.KWOK.key(layout)}"}


def test_an_up_leaves_a_build_on_need_alone_and_wants_none(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "members", lambda part="": set())
    unfinished = layout.cache / "programs" / "kwok-unfinished-1"
    unfinished.mkdir(parents=True)
    leftovers.end_builds(layout)
    assert unfinished.exists()
    assert programs.KWOK not in programs.MODULES


@pytest.mark.parametrize(
    ("text", "expected"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go1.9", (1, 9)), ("no go here", (0, 0))],
    ids=["usual", "short", "none"],
)
def test_go_version_is_parsed(text: str, expected: tuple[int, int]) -> None:
    assert golang.version(text) == expected


def test_dockerignore_keeps_what_an_exception_names(tmp_path: Path) -> None:
    for name in ("jobs/run.py", "jobs/__pycache__/run.pyc", "notes.txt", ".venv/lib/x.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".dockerignore").write_text("# all but\n*\n!jobs\n**/__pycache__\n")
    assert [name for name, _ in context.files_of(tmp_path)] == ["jobs/run.py"]


@pytest.mark.parametrize(
    ("pattern", "path", "ignored"),
    [
        ("*.md", "README.md", True),
        ("*.md", "docs/README.md", False),
        ("**/*.md", "docs/README.md", True),
        ("docs", "docs/a/b.txt", True),
        ("doc?", "docs", True),
        ("docs/*", "docs/a/b.txt", True),
    ],
)
def test_dockerignore_patterns(pattern: str, path: str, ignored: bool) -> None:
    assert context.is_ignored(context.parse([pattern]), path) is ignored


def test_the_job_image_is_tagged_by_its_content(layout: Layout) -> None:
    found = {image.short: image for image in images.wanted(layout)}
    job = found["job"]
    assert re.fullmatch(re.escape(settings.JOB_IMAGE) + r":dev-[0-9a-f]{12}", job.name)
    names = {name for name, _ in job.files}
    assert "jobs/__main__.py" in names
    assert not any(name.startswith((".git", ".venv", "tests", "deploy")) for name in names)


def test_the_console_image_has_more_and_leaves_the_job_image_as_it_is(layout: Layout) -> None:
    found = {image.short: image for image in images.wanted(layout)}
    job, console = found["job"], found["console"]
    assert re.fullmatch(re.escape(settings.CONSOLE_IMAGE) + r":dev-[0-9a-f]{12}", console.name)
    more = {name.partition("/")[0] for name, _ in {*console.files} - {*job.files}}
    assert ({*job.files} < {*console.files}, more) == (True, {"console"})
    assert list(found).index("job") < list(found).index("console"), "its layers are there"


def test_images_under_upstream_names_carry_the_pinned_versions(layout: Layout) -> None:
    names = {image.short: image.name for image in images.wanted(layout)}
    assert names["keda"] == f"ghcr.io/kedacore/keda:{settings.KEDA_VERSION}"
    assert names["lab-demo"] == settings.LAB_IMAGE


def test_only_labelled_images_count_as_imported() -> None:
    listing = (
        "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
        "a:1 application/x sha256:1 1.0 MiB linux/amd64 autolabs.io/content=abc,io.cri=managed\n"
        "b:1 application/x sha256:2 1.0 MiB linux/amd64 io.cri=managed\n"
        "c:1 application/x sha256:3 1.0 MiB linux/amd64 -\n"
    )
    assert images.parse_images(listing) == {"a:1": "abc"}


def test_an_image_id_is_dropped_when_no_name_is_left() -> None:
    listing = (
        "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
        "a:1 application/x sha256:1 1.0 MiB linux/amd64 -\n"
        "sha256:id1 application/x sha256:1 1.0 MiB linux/amd64 -\n"
        "sha256:id2 application/x sha256:2 1.0 MiB linux/amd64 -\n"
    )
    assert images.parse_unnamed(listing) == ["sha256:id2"]


def test_a_changed_base_image_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = buildah.base_key()
    monkeypatch.setattr(buildah, "SUITE", "forky")
    assert buildah.base_key() != before


def test_purge_removes_only_what_we_put_into_the_cache(layout: Layout) -> None:
    layout.make_folders()
    (layout.cache / "programs" / "etcd-abc").mkdir(parents=True)
    (layout.cache / ".context-1").mkdir()
    (layout.cache / ".profile").write_text("somebody's")
    leftovers.purge(layout)
    assert [path.name for path in layout.cache.iterdir()] == [".profile"]
    assert not layout.state.exists()


def test_a_next_up_removes_unfinished_work_and_nothing_else(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "members", lambda part="": set())
    for name in ("programs/.keda-1", "programs/keda-abc", "images", ".ssh"):
        (layout.cache / name).mkdir(parents=True)
    (layout.cache / "images" / "job-1.tmp").write_text("half")
    (layout.cache / "images" / "job-1.tar").write_text("whole")
    leftovers.end_builds(layout)
    found = {path.relative_to(layout.cache).as_posix() for path in layout.cache.rglob("*")}
    assert found == {"programs", "programs/keda-abc", "images", "images/job-1.tar", ".ssh"}
