"""The command `segdpo VERB …`; scripts/VERB.py and train.py call the same functions.

Nothing here imports torch before there is work to do, so that `--help` is quick.
"""

import argparse
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdpo.guard import Ended, debugging, errors_as_lines

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from segdpo.data import Check, Opened, Verdict

Words = Sequence[str]

# Choices of options, as the packages below have them; a test compares. Importing them would import torch.
METRICS = ("iou", "dice", "boundary_iou", "hd95", "surface_dice", "precision", "recall", "components")
SPLITS = ("test", "val", "train", "all")
EXPORT_FORMATS = ("onnx", "torch_export")
PREDICTIONS = ("masks", "probabilities", "overlays")

MODEL = "a run's folder, a .safetensors, a .ckpt, or OWNER/NAME on the Hugging Face hub"
DATA = "a folder of images and masks, a pack, a COCO .json, or a .yaml of conf/data/"
TRUST = "a package whose networks may be built, such as your own"
FINDINGS_SHOWN = 50
COLOURS = {"error": "red", "info": "dim"}


def main(words: Words | None = None) -> int:
    """Run `segdpo` with these words (those of the command line by default) and return the exit status."""
    verb, *rest = (sys.argv[1:] if words is None else list(words)) or ["--help"]
    if verb in ("-h", "--help"):
        print(listing())
        return 0
    if verb == "--version":
        from segdpo import __version__

        print(f"segdpo {__version__}")
        return 0
    if verb not in VERBS:
        print(f"Expected a verb of segdpo but got {verb!r}.\n\n{listing()}", file=sys.stderr)
        return 2
    try:
        with debugging("--debug" in rest), errors_as_lines():
            return VERBS[verb]([word for word in rest if word != "--debug"])
    except Ended as ended:
        return _error(ended)
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        return 130


def listing() -> str:
    """Return the verbs with one line each."""
    lines = [f"  {name:<9} {str(run.__doc__).splitlines()[0]}" for name, run in VERBS.items()]
    more = "segdpo VERB --help has the options of a verb; --debug shows the traceback of an error."
    return "\n".join(["usage: segdpo VERB …", "", *lines, "", more])


def renamed_script(old: str, verb: str, words: Words) -> int:
    """Run a verb under the name that its script had before; the old name goes with the next release."""
    new = f"scripts/{verb.replace(' ', '.py ', 1) if ' ' in verb else f'{verb}.py'}"
    print(f"warning: scripts/{old} is now {new} (the same as segdpo {verb}).", file=sys.stderr)
    return main([*verb.split(), *words])


def train(words: Words) -> int:
    """Train a model as conf/train.yaml and the options key=value say."""
    from segdpo.recipes import run_application

    def task(config: "DictConfig") -> Any:
        from segdpo.recipes import run_recipe

        return run_recipe(config).get("metric")

    run_application("train", task, words)
    return 0


def mine(words: Words) -> int:
    """Make a data set of preferences: candidate masks, a judge, questions (conf/mine.yaml)."""
    from segdpo.recipes import run_application

    def task(config: "DictConfig") -> None:
        from segdpo.recipes import run_mine

        run_mine(config)

    run_application("mine", task, words)
    return 0


def check(words: Words) -> int:
    """Read a whole data set, list what is wrong with it, and say how to train on it."""
    parser = _parser(
        "check",
        check,
        "segdpo check MY_FOLDER [key=value …] --html sheet.html\n"
        "segdpo check conf/data/bubil.yaml [key=value …]\n\n"
        "Of a folder of images and masks, the options are guessed and printed; --yaml writes them to a file. Ends\n"
        "with the command that trains on the data, or with what is missing. Exit status 1 when anything is wrong.\n"
        "docs/own_data.md explains the findings.",
    )
    parser.add_argument("data", type=_data, help=DATA)
    parser.add_argument("options", nargs="*", help="key=value for a .yaml, or instead of what is guessed of a folder")
    parser.add_argument("--html", type=Path, help="draw the images and masks on one page, in this file")
    parser.add_argument(
        "--yaml", type=Path, help="write the options of a folder to this file; CONF/data/NAME.yaml is used as data=NAME"
    )
    parser.add_argument("--images", type=int, default=40, help="images on that page besides faulty ones (40)")
    parser.add_argument("--require-pairs", action="store_true", help="an image without preferences is an error")
    parser.add_argument("--allow", action="append", default=[], metavar="KIND", help="a kind of finding to accept")
    options = parser.parse_intermixed_args(words)

    from rich.console import Console
    from rich.markup import escape

    from segdpo.data import check_source, find_source, verdict
    from segdpo.files import DataError, write_atomically
    from segdpo.progress import track
    from segdpo.reports import ContactSheet

    console = Console(soft_wrap=True)
    try:
        opened = find_source(options.data, options.options, channels=None)
    except DataError as error:
        console.print(f"[red]error[/red] {error.kind}: {escape(str(error))}", highlight=False)
        return 1
    if opened.line:
        console.print(escape(opened.line), highlight=False)
    sheet = ContactSheet(opened.source.classes, len(opened.source), options.images)
    found = check_source(
        opened.source,
        require_pairs=options.require_pairs,
        allow=options.allow,
        progress=lambda numbers: track(numbers, "checking", console=Console(stderr=True)),
        on_record=sheet.offer if options.html else None,
    )
    _print_findings(console, found)
    judged = verdict(found)
    if options.html:
        write_atomically(options.html, sheet.html(options.data, found, judged).encode(errors="backslashreplace"))
        console.print(f"contact sheet: {options.html}")
    if opened.guessed is not None:
        opened = _print_options(opened, options)
    described = Path(options.data) if options.data.endswith(".yaml") else options.yaml
    _print_verdict(judged, opened, options.data, _config_dir(described))
    return int(found.failed)


def pack(words: Words) -> int:
    """Convert a data set, without loss, between folder, pack, COCO and parquet."""
    parser = _parser(
        "pack",
        pack,
        "segdpo pack FOLDER NAME.pack         faster to read\n"
        "segdpo pack NAME.pack FOLDER         files to look at\n"
        "segdpo pack NAME.pack COCO/NAME.json\n"
        "segdpo pack NAME.pack FOLDER --to datasets   parquet files of Hugging Face\n"
        "segdpo pack conf/data/bubil.yaml bubil.pack [key=value …]\n\n"
        "The target's suffix chooses its format, or --to does. An interrupted pack is resumed.",
    )
    parser.add_argument("source", type=_data, help=DATA)
    parser.add_argument("target", type=Path, help="where to write")
    parser.add_argument("options", nargs="*", help="key=value for a .yaml")
    parser.add_argument(
        "--to", choices=("folder", "pack", "coco", "datasets"), help="the target's format, whatever its suffix"
    )
    parser.add_argument("--manifest", choices=("jsonl", "csv"), help="of a folder (jsonl)")
    parser.add_argument("--images", choices=("files", "pixels"), help="of a pack; pixels are read faster than PNG")
    parser.add_argument("--records-per-shard", type=int, help="of a pack (64)")
    options = parser.parse_intermixed_args(words)

    from rich.console import Console

    from segdpo.data import open_source, write_source
    from segdpo.progress import track

    source = open_source(options.source, options.options, channels=None)
    form = write_source(
        options.target,
        source,
        options.to,
        manifest=options.manifest,
        images=options.images,
        records_per_shard=options.records_per_shard,
        progress=lambda records: track(records, f"writing {options.target}", console=Console(stderr=True)),
    )
    print(f"{options.target}: {len(source)} images, a {form}")
    return 0


def predict(words: Words) -> int:
    """Predict masks for an image or a folder of images of any size."""
    parser = _parser(
        "predict",
        predict,
        "segdpo predict MODEL IMAGES --out predictions --probabilities --overlays\n\n"
        "Exit status 1 when an image cannot be read: it is named, and the others are predicted. docs/howto/predict.md\n"
        "describes the files.",
    )
    parser.add_argument("model", type=Path, help=MODEL)
    parser.add_argument("images", type=Path, help="an image; or a folder and all folders in it, or its images/")
    parser.add_argument("--out", type=Path, required=True, help="gets masks/, probabilities/ and overlays/")
    parser.add_argument(
        "--probabilities", action="store_true", help="also write .npz: float16 [classes, height, width]"
    )
    parser.add_argument("--overlays", action="store_true", help="also draw the masks over the images")
    _add_size(parser)
    parser.add_argument("--overlap", type=float, default=0.25, help="share of a window that its neighbour covers (.25)")
    parser.add_argument("--batch", type=int, help="windows in one forward pass (as many as have 1024 × 1024 pixels)")
    _add_device_and_trust(parser)
    options = parser.parse_args(words)

    from rich.console import Console

    from segdpo.checks import check_device
    from segdpo.inference import find_images, open_segmenter, predict_files, preparation_for
    from segdpo.preferences import check_windows
    from segdpo.progress import track

    device = _device(options.device)
    check_windows(options.window, options.overlap, options.batch)
    check_device("--device", device)
    files = find_images(options.images, leave_out=options.out)
    segmenter, description = open_segmenter(options.model, trusted=options.trusted)
    trained = description["preparation"]
    print(preparation_for(trained, native=options.native, window=options.window).line(native=options.native))
    outcomes = predict_files(
        segmenter,
        description,
        files,
        options.out,
        kinds=[kind for kind in PREDICTIONS if kind == "masks" or getattr(options, kind)],
        native=options.native,
        window=options.window,
        overlap=options.overlap,
        batch=options.batch,
        device=device,
    )
    skipped = 0
    for outcome in track(outcomes, "predicting", total=len(files), console=Console(stderr=True)):
        if outcome.error:
            skipped += 1
            _error(outcome.error, "skipped")
    print(f"{options.out}: {len(files) - skipped} of {len(files)} images predicted, {skipped} skipped")
    return int(skipped > 0)


def evaluate(words: Words) -> int:
    """Measure a model, or two against each other, on images with gold masks."""
    parser = _parser(
        "evaluate",
        evaluate,
        "segdpo evaluate outputs/mine\n"
        "segdpo evaluate outputs/mine --split all --out elsewhere --data conf/data/bubil.yaml data.gold=masks_gold\n\n"
        "For a run, its own data, transforms and split are used unless others are given, and it is compared with its\n"
        "reference. docs/howto/evaluate.md describes the files.",
    )
    parser.add_argument("model", type=Path, help=MODEL)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of data, transforms, datamodule.split …")
    parser.add_argument("--against", type=Path, help="the model to compare with (of a run: its reference)")
    parser.add_argument("--data", type=_data, help=f"{DATA} (of a run: its data)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images (test)")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS, help="(all)")
    parser.add_argument("--tolerance", type=float, default=2.0, help="of surface Dice, in pixels (2)")
    _add_size(parser)
    parser.add_argument("--out", type=Path, help="gets the files (of a run: its evaluation/, or evaluation_kept/)")
    _add_device_and_trust(parser)
    options = parser.parse_intermixed_args(words)

    from rich.console import Console

    from segdpo.files import conf_folder
    from segdpo.recipes import Request, evaluate_weights
    from segdpo.reports import evaluation_table

    options.device = _device(options.device)
    asked = {name: value for name, value in vars(options).items() if name != "as_trained"}
    report = evaluate_weights(Request(**asked, conf=conf_folder()))
    for note in report.notes:
        _error(note, "note", "yellow")
    print("\n".join(report.said))
    Console().print(evaluation_table(report.summary))
    print(f"{report.folder}: images.csv, classes.csv, summary.json, overlays/")
    return 0


def report(words: Words) -> int:
    """Write one HTML page about a run, several runs or a sweep."""
    parser = _parser("report", report, "segdpo report outputs/mine\nsegdpo report multirun/losses --against sft")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN|SWEEP", help="what segdpo train wrote")
    parser.add_argument("--out", type=Path, help="the file (of one folder: its report.html; else report.html here)")
    _add_dense_and_against(parser)
    options = parser.parse_args(words)

    from rich.console import Console

    from segdpo import reports
    from segdpo.files import write_atomically
    from segdpo.progress import track

    def progress(runs: Sequence[Path]) -> Iterable[Path]:
        return track(runs, "reading", transient=True, console=Console(stderr=True))

    out: Path = options.out or (options.folders[0] if len(options.folders) == 1 else Path()) / "report.html"
    page = reports.html_report(options.folders, progress, dense=options.dense, against=options.against)
    write_atomically(out, page.encode())
    print(out)
    return 0


def collect(words: Words) -> int:
    """Gather the runs of a sweep or a search in one table, with intervals over seeds."""
    parser = _parser(
        "collect",
        collect,
        "segdpo train -m loss=sft,dpo,hinge_anchor seed=0,1,2,3,4 hydra.sweep.dir=multirun/losses\n"
        "segdpo collect multirun/losses\n"
        "segdpo collect multirun/worth_few_masks --dense dense_gold --against sft\n"
        "segdpo collect multirun/frontier --frontier\n\n"
        "Runs whose options differ only in seed and threads are one row. Runs without a summary.json are named.",
    )
    parser.add_argument("folder", type=Path, help="where the sweep wrote its runs, such as multirun/losses")
    parser.add_argument("--out", type=Path, help="gets the table as .md and .csv, and the figure (the sweep's folder)")
    parser.add_argument("--frontier", action="store_true", help="reward against KL to the reference, a row a strength")
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY", help="an option that makes no new row")
    _add_dense_and_against(parser)
    options = parser.parse_args(words)
    if options.frontier and (options.ignore or options.dense or options.against):
        parser.error("Expected --frontier without --ignore, --dense and --against.")

    from segdpo import reports
    from segdpo.files import write_atomically

    out: Path = options.out or options.folder
    if options.frontier:
        files = reports.collect_frontier(options.folder)
    else:
        files = reports.collect_sweep(options.folder, options.ignore, dense=options.dense, against=options.against)
    for name, content in files.items():
        write_atomically(out / name, content)
    print(f"files in {out}: {', '.join(files)}", file=sys.stderr)
    return 0


def search(words: Words) -> int:
    """Search for hyperparameters with Optuna, ending trials early when they fall behind."""
    parser = _parser(
        "search",
        search,
        "segdpo search hparams_search=anchors [any override of segdpo train …]\n\n"
        "Started again with the same options, it resumes; several processes share the work with\n"
        "hparams_search.seed=null. conf/hparams_search/ says what is searched, with which sampler and pruner.",
    )
    parser.add_argument("overrides", nargs="+", help="hparams_search=… and the options of segdpo train")
    parser.add_argument(
        "--config-dir", type=Path, metavar="CONF", help="a folder of yaml files like conf/, as of train"
    )
    options = parser.parse_intermixed_args(words)

    from hydra import initialize_config_dir
    from rich.console import Console

    from segdpo.files import conf_folder
    from segdpo.recipes import run_recipe, run_search, search_path
    from segdpo.renamed import current_words

    added = [] if options.config_dir is None else [search_path(options.config_dir)]
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            run_search(run_recipe, [*current_words(options.overrides), *added], Console())
    except KeyboardInterrupt:
        print("stopped; the same command resumes")
        return 130
    return 0


def export(words: Words) -> int:
    """Write a model as ONNX or as a torch.export program, checked against the model itself."""
    parser = _parser(
        "export",
        export,
        "segdpo export MODEL network.onnx --height 256 --width 256\n"
        "segdpo export MODEL network.pt2 --format torch_export --dynamic\n"
        "segdpo export MODEL masks.onnx --with-preparation --dynamic\n\n"
        "docs/howto/export.md describes inputs and outputs.",
    )
    parser.add_argument("model", type=Path, help=MODEL)
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="(onnx)")
    parser.add_argument("--height", type=int, default=256, help="(256)")
    parser.add_argument("--width", type=int, default=256, help="(256)")
    parser.add_argument("--batch", type=int, default=1, help="images in one call (1)")
    parser.add_argument("--dynamic", action="store_true", help="any number and size of images")
    parser.add_argument(
        "--with-preparation", action="store_true", help="from images as they are to masks, as predict does it"
    )
    parser.add_argument("--trust", action="append", default=[], dest="trusted", metavar="PACKAGE", help=TRUST)
    options = parser.parse_args(words)

    from rich.console import Console

    from segdpo import inference

    segmenter, description = inference.open_segmenter(options.model, trusted=options.trusted)
    shape = (options.batch, inference.channels_of(segmenter), options.height, options.width)
    preparation = description["preparation"]
    notes = {key: json.dumps(description[key]) for key in ("classes", "mean", "std", "model")}
    notes["preparation"] = json.dumps(preparation.stored())
    with Console(stderr=True).status("tracing the network"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters warn about themselves
        checks = inference.export(
            segmenter,
            options.out,
            shape,
            format=options.format,
            dynamic=options.dynamic,
            preparation=preparation if options.with_preparation else None,
            notes=notes,
        )
    for one in checks:
        print(one)
    if options.with_preparation and preparation.window:
        _error(f"the file sees images whole, predict in windows of {preparation.window}.", "note", "yellow")
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


def publish(words: Words) -> int:
    """Save a model with a model card as a folder, and upload it to the Hugging Face hub."""
    parser = _parser(
        "publish",
        publish,
        "segdpo publish outputs/mine cells --license mit\n"
        "segdpo publish outputs/mine cells --license mit --push OWNER/NAME\n\n"
        "The folder is a MODEL too. docs/howto/hub.md describes it, and how others load it.",
    )
    parser.add_argument("model", type=Path, help=MODEL)
    parser.add_argument("folder", type=Path, help="gets model.safetensors, config.json and README.md")
    parser.add_argument("--license", help="for the model card, by its name on the hub, such as mit or cc-by-4.0")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="upload the folder to this repository, after hf auth login"
    )
    parser.add_argument("--private", action="store_true", help="a repository that is made by --push is private")
    parser.add_argument("--trust", action="append", default=[], dest="trusted", metavar="PACKAGE", help=TRUST)
    options = parser.parse_args(words)

    from rich.console import Console

    from segdpo.inference import open_segmenter
    from segdpo.models import push_folder

    with Console(stderr=True).status("saving the network"):
        segmenter, _ = open_segmenter(options.model, trusted=options.trusted)
        segmenter.save_pretrained(options.folder, license=options.license, repo_id=options.push)
    print(f"{options.folder}: model.safetensors, config.json, README.md")
    if options.push:
        print(push_folder(options.folder, options.push, private=options.private or None))
    return 0


VERBS: Mapping[str, Callable[[Words], int]] = {
    run.__name__: run for run in (train, mine, check, pack, predict, evaluate, report, collect, search, export, publish)
}


def _print_findings(console: "Console", found: "Check") -> None:
    from rich.markup import escape

    for finding in [finding for finding in found.findings if finding.level != "info"][:FINDINGS_SHOWN]:
        colour = COLOURS[finding.level]
        message = f"{finding.kind}: {escape(finding.id)}: {escape(finding.message)}"
        console.print(f"[{colour}]{finding.level}[/{colour}] {message}")
    for (level, kind), number in found.counts().items():
        console.print(f"[{COLOURS[level]}]{number} × {kind} ({level})[/{COLOURS[level]}]")
    verdict = "[red]something is wrong[/red]" if found.failed else "[green]nothing is wrong[/green]"
    console.print(f"{found.records} images, {found.masks} candidate masks, {found.pairs} pairs: {verdict}")


def _print_options(opened: "Opened", options: argparse.Namespace) -> "Opened":
    """Print the options of a folder that were guessed, as a yaml, or write them to a file."""
    import yaml  # type: ignore[import-untyped]

    from segdpo.files import write_atomically

    values = {"_target_": "segdpo.data.plain_folder", "root": str(options.data), **(opened.guessed or {})}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    if options.yaml is None:
        print(
            "\nAll options, for a file CONF/data/NAME.yaml (--yaml writes it) that is used with --config-dir CONF "
            f"data=NAME:\n\n{text}"
        )
        return opened
    write_atomically(options.yaml, f"# {opened.line or options.data}\n{text}".encode())
    print(f"options: {options.yaml}")
    in_group = options.yaml.absolute().parent.name == "data"
    return replace(opened, options={"data": options.yaml.stem}) if in_group else opened


def _config_dir(choice: Path | None) -> list[str]:
    """Return the words that add a folder of the user's to the configuration, for a file CONF/data/NAME.yaml in it."""
    from segdpo.files import conf_folder

    if choice is None or choice.absolute().parent.name != "data":
        return []
    folder = choice.parent.parent if choice.parent.parent != choice.parent else Path()
    return [] if folder.resolve() == conf_folder() else ["--config-dir", str(folder)]


def _print_verdict(judged: "Verdict", opened: "Opened", data: str, more: Words) -> None:
    """Print whether the data can be trained on: with which commands, or what is missing."""
    from segdpo.data import command_line

    if not judged.ready:
        print("not ready to train; missing:")
        for one in judged.missing:
            print(f"  - {one}")
        return
    name = re.sub(r"\W+", "_", Path(data).absolute().stem).strip("_")
    folder = f"outputs/{name or 'data'}"
    print("ready to train:")
    for reason in judged.reasons:
        print(f"  - {reason}")
    print("\n" + command_line(opened.options, [*judged.options, f"hydra.run.dir={folder}", *more]))
    print(f"segdpo predict {folder} NEW_IMAGES --out {folder}/predictions")


def _parser(verb: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
    width = min(shutil.get_terminal_size().columns, 120)
    return argparse.ArgumentParser(
        f"segdpo {verb}",
        description=f"{run.__doc__}\n\n{text}",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=width),
    )


def _data(text: str) -> str:
    """Return the path of a data set; conf/… is the installed configuration where there is no such folder."""
    if Path(text).parts[:1] != ("conf",) or Path(text).exists():
        return text
    from segdpo.files import conf_folder

    return str(conf_folder() / Path(*Path(text).parts[1:]))


def _add_size(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--as-trained", action="store_true", help="show the model images as in training (the default)")
    size.add_argument("--native", action="store_true", help="show the model images at their own size, in windows")
    parser.add_argument("--window", type=int, help="side of the windows (as in training; with --native 512)")


def _add_device_and_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="where the model runs (cuda if there is one, else cpu)")
    parser.add_argument("--trust", action="append", default=[], dest="trusted", metavar="PACKAGE", help=TRUST)


def _add_dense_and_against(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dense", metavar="ROW", help="the row trained on dense gold masks: adds what others recover")
    parser.add_argument("--against", metavar="ROW", help="adds each row's difference to this one, seed by seed")


def _device(name: str | None) -> str:
    """Return the device, such that the same command computes the same numbers: predict those of evaluate."""
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    # On a GPU some sums have another order each time. On a CPU this would only take seconds and 150 MB.
    if not device.startswith("cpu"):
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def _error(message: object, label: str = "error", colour: str = "red") -> int:
    """Print a message for the user on stderr, and return the exit status 1."""
    try:
        from rich.console import Console
        from rich.markup import escape
    except ModuleNotFoundError:  # where the core alone is installed
        print(f"{label} {message}", file=sys.stderr)
        return 1
    Console(stderr=True, soft_wrap=True).print(f"[{colour}]{label}[/{colour}] {escape(str(message))}", highlight=False)
    return 1
