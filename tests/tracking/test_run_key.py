import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import assay
from assay.devices import Compute
from assay.errors import ProjectError
from assay.params import Params
from assay.project import Project
from assay.records import RunKey
from assay.tracking.run_key import (
    MAX_NAMED_CHANGES,
    compute_run_key,
    explain_difference,
    package_versions,
    source_hashes,
)

CPU = Compute(device="cpu", precision="fp32", num_threads=2)
MD5 = "a1b2c3d4" * 4 + ".dir"
FLOW = """
from assay import errors

def pipeline():
    from assay.params import load_params
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    root = tmp_path / "project"
    (root / "flows").mkdir(parents=True)
    (root / "flows" / "pipeline.py").write_text(FLOW)
    (root / "constraints.txt").write_text("# pins\nnumpy==2.4.0\nnot-installed-anywhere==1.0 ; python_version > '3'\n")
    return Project(root=root, home=root / ".assay")


def key_of(project: Project, overrides: dict | None = None, md5: str = MD5, compute: Compute = CPU) -> RunKey:
    return compute_run_key(project, Params.model_validate(overrides or {}), md5, compute)


def test_equal_inputs_give_equal_keys(project: Project) -> None:
    assert key_of(project) == key_of(project)
    assert RunKey.from_json(json.loads(json.dumps(key_of(project).to_json()))) == key_of(project)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"overrides": {"train": {"dropout_prob": 0.5}}}, ("train.dropout_prob 0.25 -> 0.5",)),
        ({"overrides": {"train": {"seed": 3}}}, ("train.seed 0 -> 3",)),
        ({"overrides": {"split": {"seed": 4}}}, ("split.seed 0 -> 4",)),
        ({"overrides": {"model": {"kind": "cnn", "channels": [8, 16]}}}, ("model.channels [32, 64] -> [8, 16]",)),
        ({"overrides": {"registry": {"model_name": "other"}}}, ("registry.model_name mnist5k-cnn -> other",)),
        (
            {"overrides": {"train": {"optimizer": {"kind": "sgd"}}}},
            (
                "train.optimizer.beta1 0.9 -> none",
                "train.optimizer.beta2 0.999 -> none",
                "train.optimizer.kind adamw -> sgd",
                "train.optimizer.learning_rate 0.002 -> 0.05",
                "train.optimizer.momentum none -> 0.9",
                "train.optimizer.nesterov none -> false",
                "train.optimizer.weight_decay 0.01 -> none",
            ),
        ),
        ({"md5": "e5f6a7b8" * 4 + ".dir"}, ("data md5 a1b2c3d4 -> e5f6a7b8",)),
        ({"compute": Compute("cuda", "bf16", 1)}, ("device cpu -> cuda", "precision fp32 -> bf16", "threads 2 -> 1")),
    ],
)
def test_what_a_result_depends_on_changes_the_key(project: Project, changes: dict, expected: tuple[str, ...]) -> None:
    old, new = key_of(project), key_of(project, **changes)
    assert old.digest != new.digest
    assert explain_difference(old, new) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        {"train": {"checkpoint_every_seconds": 1.0}},
        {"registry": {"experiment": "another"}},
        {"device": {"kind": "cpu", "num_threads": 2}},
    ],
)
def test_what_changes_no_result_leaves_the_key(project: Project, overrides: dict) -> None:
    assert key_of(project, overrides) == key_of(project)


def test_the_flow_and_what_it_imports_is_hashed(project: Project) -> None:
    hashed = key_of(project).details["source"]
    assert {"assay/__init__.py", "assay/errors.py", "assay/params/__init__.py", "flows/pipeline.py"} <= set(hashed)
    assert not any(name.startswith(("assay/cli/", "assay/models/")) for name in hashed)


def test_an_edited_flow_changes_the_key(project: Project) -> None:
    old = key_of(project)
    flow = project.root / "flows" / "pipeline.py"
    flow.write_text(flow.read_text() + "# only a comment\n")
    assert explain_difference(old, key_of(project)) == ("flows/pipeline.py changed",)


def test_a_file_beside_the_flow_counts_once_it_is_imported(project: Project) -> None:
    (project.root / "flows" / "steps.py").write_text("import assay.headlines\n")
    old = key_of(project)
    assert "flows/steps.py" not in old.details["source"]
    for line in ("from . import steps", "from .steps import x", "import flows.steps", "from flows.steps import x"):
        (project.root / "flows" / "pipeline.py").write_text(FLOW + line)
        new = key_of(project)
        assert explain_difference(old, new) == (
            "assay/headlines.py added",
            "flows/pipeline.py changed",
            "flows/steps.py added",
        )


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("def pipeline(:", "not valid Python")])
def test_a_flow_that_cannot_be_parsed_is_named(project: Project, content: str | None, message: str) -> None:
    flow = project.root / "flows" / "pipeline.py"
    flow.unlink()
    if content is not None:
        flow.write_text(content)
    with pytest.raises(ProjectError, match=message) as raised:
        key_of(project)
    assert str(flow) in str(raised.value)


PRINT_KEY = """
import json, sys
from pathlib import Path
from assay.devices import Compute
from assay.params import Params
from assay.project import Project
from assay.tracking.run_key import compute_run_key
root = Path(sys.argv[1])
key = compute_run_key(Project(root, root / ".assay"), Params(), "0" * 32, Compute("cpu", "fp32", 1))
heavy = sorted({"torch", "mlflow", "prefect", "pandas"} & set(sys.modules))
print(json.dumps({"key": key.to_json(), "heavy": heavy}))
"""


def key_in_process(project: Project, *paths: Path) -> tuple[RunKey, list[str]]:
    """Compute the key in a process of its own, with `paths` in front of the import path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    reply = subprocess.run(
        [sys.executable, "-c", PRINT_KEY, str(project.root)], capture_output=True, text=True, env=environment
    )
    assert reply.returncode == 0, reply.stderr
    values = json.loads(reply.stdout)
    return RunKey.from_json(values["key"]), values["heavy"]


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    source = Path(assay.__file__).parent
    shutil.copytree(source, tmp_path / "copy" / "assay", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def test_edits_inside_the_import_closure_count_and_others_do_not(project: Project, package_copy: Path) -> None:
    (project.root / "flows" / "pipeline.py").write_text("def f():\n    import assay.models.build\n")
    old, heavy = key_in_process(project, package_copy)
    assert heavy == []
    assert "assay/cli/main.py" not in old.details["source"]
    (package_copy / "assay" / "cli" / "extra.py").write_text("x = 1\n")
    assert key_in_process(project, package_copy)[0] == old
    for name in ("models/cnn.py", "models/__init__.py", "errors.py"):
        file = package_copy / "assay" / name
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        new = key_in_process(project, package_copy)[0]
        assert explain_difference(old, new) == (f"assay/{name} changed",)
        file.write_bytes(before)
    assert key_in_process(project, package_copy)[0] == old


def test_a_new_import_brings_its_file_into_the_key(project: Project, package_copy: Path) -> None:
    (project.root / "flows" / "pipeline.py").write_text("import assay.project\n")
    old = key_in_process(project, package_copy)[0]
    (package_copy / "assay" / "fresh.py").write_text("x = 1\n")
    module = package_copy / "assay" / "project.py"
    module.write_text(module.read_text() + "\n\ndef late() -> None:\n    import assay.fresh\n")
    new = key_in_process(project, package_copy)[0]
    assert explain_difference(old, new) == ("assay/fresh.py added", "assay/project.py changed")
    assert explain_difference(new, old) == ("assay/fresh.py removed", "assay/project.py changed")


def test_a_template_beside_an_imported_module_counts(project: Project, package_copy: Path) -> None:
    (project.root / "flows" / "pipeline.py").write_text("import assay.evaluation.metrics\n")
    template = package_copy / "assay" / "evaluation" / "zz_report.html"
    template.write_text("<p>one</p>")
    old = key_in_process(project, package_copy)[0]
    template.write_text("<p>two</p>")
    new = key_in_process(project, package_copy)[0]
    assert explain_difference(old, new) == ("assay/evaluation/zz_report.html changed",)


def fake_install(folder: Path, name: str, version: str) -> Path:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


def test_an_installed_version_that_changes_is_named(project: Project, tmp_path: Path) -> None:
    (project.root / "constraints.txt").write_text("made-up-package==1.0\nanother-one==3\n")
    old = key_in_process(project, fake_install(tmp_path / "a", "made-up-package", "1.0"))[0]
    new = key_in_process(project, fake_install(tmp_path / "b", "made-up-package", "1.1"))[0]
    assert explain_difference(old, new) == ("made-up-package 1.0 -> 1.1",)
    none = key_in_process(project)[0]
    assert explain_difference(new, none) == ("made-up-package 1.1 -> not installed",)


def test_packages_are_read_from_the_constraints(project: Project) -> None:
    import numpy

    versions = package_versions(project.root / "constraints.txt")
    assert versions == {"numpy": numpy.__version__, "not-installed-anywhere": "-"}


def test_the_packaged_constraints_stand_in_for_missing_ones(project: Project) -> None:
    (project.root / "constraints.txt").unlink()
    expected = package_versions(Path(assay.__file__).parent / "constraints.txt")
    assert key_of(project).details["packages"] == expected


def test_many_changes_of_one_part_are_counted() -> None:
    names = [f"assay/file{number:02}.py" for number in range(20)]
    old = RunKey(
        "0" * 64, {"source": "a", "threads": "1"}, {"source": dict.fromkeys(names, "1"), "threads": {"threads": "1"}}
    )
    new = RunKey(
        "1" * 64, {"source": "b", "threads": "2"}, {"source": dict.fromkeys(names, "2"), "threads": {"threads": "2"}}
    )
    sentences = explain_difference(old, new)
    assert sentences[:MAX_NAMED_CHANGES] == tuple(f"{name} changed" for name in names[:MAX_NAMED_CHANGES])
    assert sentences[MAX_NAMED_CHANGES:] == ("and 12 more changes of source", "threads 1 -> 2")


def test_a_key_without_details_still_says_which_part_changed() -> None:
    old = RunKey("0" * 64, {"source": "a", "data": "x"})
    new = RunKey("1" * 64, {"source": "b", "data": "y"})
    assert explain_difference(old, new) == ("data changed", "source changed")


def test_the_import_graph_is_cached_below_the_project(project: Project) -> None:
    source_hashes(project.root / "flows" / "pipeline.py", project.cache_dir)
    assert any(project.cache_dir.joinpath("imports").iterdir())
