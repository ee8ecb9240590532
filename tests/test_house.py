"""The house keeps its own rules: floors, rooms, names, nothing unsafe, nothing heavy at start, and docs that tell the truth."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer.main

import affinage
from affinage.cli import app

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "affinage"
FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

# A module imports from its own floor and from those below, never from above; the rooms of floor 3 never from each other.
FLOORS: dict[int, set[str]] = {
    5: {"__init__", "__main__", "anatomy", "asked", "cli", "complaint"},
    4: {"config", "ending", "inputs", "run", "stages", "story", "trained"},
    3: {"check", "data", "report", "tasks"},
    2: {
        "ahead",
        "augment",
        "augment_boxes",
        "recompute",
        "attention",
        "batches",
        "beam",
        "blocks",
        "card",
        "checkpoint",
        "classification",
        "contents",
        "cut",
        "entry",
        "dictation",
        "dropout",
        "facts",
        "features",
        "filling",
        "first",
        "fit",
        "frozen",
        "headed",
        "hearing",
        "hold",
        "hub",
        "instead",
        "joint",
        "labels",
        "layout",
        "lora",
        "models",
        "named",
        "net",
        "pictures",
        "plans",
        "pooling",
        "pretrained",
        "product",
        "progress",
        "ragged",
        "ranks",
        "rates",
        "replay",
        "reach",
        "shards",
        "solve",
        "sound",
        "spool",
        "standing",
        "starters",
        "store",
        "team",
        "views",
    },
    1: {"boxes", "errors", "measure", "record", "types"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf8"), filename=str(path))


def room(path: Path) -> str:
    """affinage/data/folder.py -> data; affinage/net.py -> net."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def module(path: Path) -> str:
    """affinage/data/folder.py -> affinage.data.folder; a package's __init__ -> the package."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path) for path in FILES}


def targets(path: Path, node: ast.AST) -> list[str]:
    """The modules of ours that an import statement names, as dotted names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.split(".")[0] == "affinage"]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = module(path).split(".") if path.name == "__init__.py" else module(path).split(".")[:-1]
        base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
    if base.split(".")[0] != "affinage":
        return []
    found = []
    for alias in node.names:
        if base == "affinage" and alias.name == "__version__":
            continue  # a constant: what a run records
        below = f"{base}.{alias.name}"
        found.append(below if below in MODULES else base)
    return found


def imports(path: Path, *, at_start: bool = False) -> set[str]:
    """What a file imports of ours; with `at_start`, only what runs when it is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_start and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if at_start and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        found.update(targets(path, node))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(path))
    return found


def room_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_module_has_a_floor(path: Path) -> None:
    assert room(path) in FLOOR, f"{ids(path)} stands on no floor: add '{room(path)}' to FLOORS and to docs/architecture.md"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_nothing_imports_upwards(path: Path) -> None:
    here = FLOOR[room(path)]
    up = {name: FLOOR[room_of(name)] for name in imports(path) if FLOOR[room_of(name)] > here}
    assert not up, f"{ids(path)} on floor {here} imports from above: {up}"


@pytest.mark.parametrize("path", [path for path in FILES if FLOOR.get(room(path)) == 3], ids=ids)
def test_rooms_on_floor_3_do_not_know_each_other(path: Path) -> None:
    others = {name for name in imports(path) if FLOOR[room_of(name)] == 3 and room_of(name) != room(path)}
    assert not others, f"{ids(path)} imports its neighbours {sorted(others)}; what both need belongs on floor 1 or 2"


def test_no_import_circle() -> None:
    graph = {module(path): imports(path, at_start=True) - {module(path)} for path in FILES}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for below in sorted(graph.get(name, ())):
            walk(below, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        walk(name, ())


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=ids)
def test_no_import_confuses_a_module_with_the_public_function(path: Path) -> None:
    both = {name for name in affinage.__all__ if f"affinage.{name}" in MODULES}  # fit and check are functions and modules
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module == "affinage" or (node.level and not node.module)):
            found = both & {alias.name for alias in node.names}
            assert not found, f"{ids(path)}:{node.lineno}: write `from affinage.{min(found)} import ...`, this is the function"


def test_floors_can_see_a_wrong_import(tmp_path: Path) -> None:
    wrong = ast.parse(
        "from affinage.run import fit\nfrom affinage import cli\nfrom affinage import __version__\nimport affinage.config\n"
    )
    here = PACKAGE / "errors.py"
    seen = [name for node in wrong.body for name in targets(here, node)]
    assert [room_of(name) for name in seen] == ["run", "cli", "config"]
    relative = ast.parse("from ..net import Net\nfrom . import folder").body
    assert room_of(targets(PACKAGE / "data" / "folder.py", relative[0])[0]) == "net"
    assert room_of(targets(PACKAGE / "data" / "folder.py", relative[1])[0]) == "data"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_every_file_opens_with_a_docstring(path: Path) -> None:
    text = ast.get_docstring(tree(path))
    assert text and text.splitlines()[0].rstrip()[-1] in ".!?:`", f"{ids(path)} opens with no sentence that says what it is"


def test_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [ids(path) for path in FILES if path.stem in drawers or drawers & set(path.relative_to(PACKAGE).parts)]


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_public_names_are_sorted_and_there(path: Path) -> None:
    for node in tree(path).body:
        names = [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]
        if "__all__" in names and isinstance(node, ast.Assign):
            listed = ast.literal_eval(node.value)
            assert listed == sorted(listed) and len(set(listed)) == len(listed), f"{ids(path)}: {listed}"


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_file_can_run_code(path: Path) -> None:
    unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not unsafe & {name.split(".")[0] for name in names}, f"{ids(path)}:{node.lineno} imports {names}"  # type: ignore[attr-defined]
    for name, call in calls(path):
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        where = f"{ids(path)}:{call.lineno}"
        assert words.get("trust_remote_code", "False") == "False", f"{where} trusts remote code"
        assert words.get("allow_pickle", "False") == "False", f"{where} allows pickles"
        if name.endswith("torch.load"):
            assert words.get("weights_only") == "True", f"{where}: torch.load without weights_only=True"
        assert name not in ("eval", "exec", "yaml.load", "yaml.unsafe_load"), f"{where} calls {name}"
        assert words.get("shell", "False") == "False", f"{where} starts a shell"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_package_that_the_house_does_without(path: Path) -> None:
    found = {
        name.split(".")[0]
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert not found & {"torchvision", "torchaudio", "torchcodec", "timm"}, ids(path)


def started(code: str) -> set[str]:
    """The heavy packages that are loaded after `code` ran in a fresh interpreter."""
    heavy = ["torch", "transformers", "pandas", "peft", "datasets", "sklearn", "scipy", "pyarrow", "PIL"]
    after = f"\nimport sys; print('LOADED', *[name for name in {heavy!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code + after], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(answer.stdout.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("words", [["--help"], ["fit", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    assert started(f"from affinage.cli import main\nassert main({words!r}) == 0") == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert started("import affinage\nassert affinage.__version__") == set()


def test_the_linter_has_nothing_to_say() -> None:
    for words in (["check"], ["format", "--check"]):
        answer = subprocess.run([sys.executable, "-m", "ruff", *words, "."], capture_output=True, text=True, cwd=ROOT)
        assert answer.returncode == 0, answer.stdout + answer.stderr


def test_version_is_said_once() -> None:
    import tomllib

    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["version"] == affinage.__version__
    assert f"## [{affinage.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf8")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf8"), flags=re.M | re.S)
    return [body for language, body in found if language in languages]


def commands() -> list[tuple[str, str]]:
    """(page, line) of every shell line in the docs, continuations joined."""
    found = []
    for page in PAGES:
        for body in blocks(page, "bash", "sh", "console", "shell"):
            lines = body.replace("\\\n", " ").splitlines()
            found += [(page.name, line.strip().removeprefix("$ ")) for line in lines if line.strip() and not line.startswith("#")]
    return found


def test_commands_in_the_docs_exist() -> None:
    group = typer.main.get_command(app)
    targets_of_make = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf8"), flags=re.M))
    seen = 0
    for page, line in commands():
        words = shlex.split(line.split("|")[-1].split(">")[0], comments=True)
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets_of_make, f"{page}: {line}"
        if Path(words[0]).name == "python" and words[1:2] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{page}: {line}"
        if words[0] != "affinage" and words[:3] != ["python", "-m", "affinage"]:
            continue
        words = words[1:] if words[0] == "affinage" else words[3:]
        if words[0].startswith("-"):
            continue
        command = group.commands.get(words[0])  # type: ignore[attr-defined]
        assert command is not None, f"{page}: no command {words[0]} in `{line}`"
        known = {name for parameter in command.params for name in parameter.opts} | {"--debug", "--help"}
        used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
        assert used <= known, f"{page}: `{line}` uses {sorted(used - known)}"
        seen += 1
    assert seen >= 5, "the docs show fewer commands than there are"


def test_python_in_the_docs_uses_names_that_exist() -> None:
    seen = 0
    for page in PAGES:
        for body in blocks(page, "python"):
            for node in ast.walk(ast.parse(body)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "affinage":
                    assert node.attr in affinage.__all__, f"{page.name}: affinage.{node.attr}"
                    seen += 1
    assert seen


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_settings_are_all_on_the_page() -> None:
    from affinage.config import Settings

    text = (ROOT / "docs" / "guide.md").read_text(encoding="utf8")
    missing = [name for name in Settings.model_fields if f"`{name}`" not in text]
    assert not missing, f"docs/guide.md says nothing of {missing}"
