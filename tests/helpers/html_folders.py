"""Run folders written by hand, as train.py and scripts/evaluate.py leave them, for the tests of the report."""

import csv
import io
import json
import math
import struct
import zlib
from html.parser import HTMLParser

import yaml

BLOCKS = {"p", "li", "div", "figure", "figcaption", "h1", "h2", "h3", "summary", "pre", "tr"}
VOID = {"meta", "img", "link", "br", "input", "hr"}
IMAGES = (("a", 0.4, 0.7), ("b", 0.5, 0.75), ("c", 0.6, 0.55), ("d", 0.5, 0.6))


def interval(mean, low, high, n=4, **more):
    return {"mean": mean, "low": low, "high": high, "n": n, **more}


def summary_of(policy=0.65, reference=0.5, low=0.05, high=0.25, seed=0, **more):
    difference = policy - reference
    return {
        "seed": seed,
        "loss": "hinge_anchor",
        "data": "shapes",
        "policy": {"iou": interval(policy, policy - 0.1, policy + 0.1)},
        "reference": {"iou": interval(reference, reference - 0.1, reference + 0.1)},
        "difference": {
            "iou": interval(difference, low, high, better=3, worse=1),
            "win_rate": {"rate": 0.75, "low": 0.3, "high": 0.95, "n": 4},
        },
        "pairs": {"train": 42, "test": 4, "accuracy": 0.9, "margin": 1.5, "chosen_gain": 0.125, "judgements": 126},
        "seconds": {"reference": 6.25, "total": 61.5},
        **more,
    }


def evaluation_of(images=IMAGES):
    return {
        "metrics": ["iou", "hd95"],
        "policy": {"iou": interval(0.65, 0.55, 0.75), "hd95": interval(3.25, 2.0, 4.0)},
        "reference": {"iou": interval(0.5, 0.4, 0.6), "hd95": interval(7.75, 5.0, 9.0)},
        "difference": {
            "iou": interval(0.15, 0.05, 0.25, better=3, worse=1),
            "hd95": interval(-4.5, -6.0, -3.0, better=4, worse=0),
        },
        "wilcoxon": {"iou": {"statistic": 1.0, "p": 0.0421, "n": 4}, "hd95": {"p": 0.00001}},
        "calibration": {
            name: {
                "ece": 0.0123,
                "brier": 0.0456,
                "bins": [0, 10, 30],
                "confidence": [math.nan, 0.5, 0.9],
                "accuracy": [math.nan, 0.6, 0.95],
            }
            for name in ("policy", "reference")
        },
        "worst": [[name, after - before] for name, before, after in images if after < before],
    }


METRICS = """epoch,step,train/pairs/margin,train/pairs/chosen_gain,train/score/policy_chosen,\
train/score/reference_chosen,train/score/policy_rejected,train/score/reference_rejected,train/loss,val/iou
0,0,0.0,0.0,-0.3,-0.3,-0.5,-0.5,0.69,
0,10,0.5,0.1,-0.2,-0.3,-0.6,-0.5,0.5,0.55
0,20,1.0,0.15,-0.15,-0.3,-0.7,-0.5,0.4,0.625
"""


def png(width=40, height=20):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def images_csv(images=IMAGES):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "policy_iou", "reference_iou"])
    writer.writerows([name, repr(after), repr(before)] for name, before, after in images)
    return text.getvalue()


def write_run(
    folder, summary=None, overrides=("loss=hinge_anchor", "seed=0"), metrics=METRICS, evaluation=None, images=IMAGES
):
    """Write what a run leaves; None leaves a file out."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    if metrics is not None:
        (folder / "metrics.csv").write_text(metrics)
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "config.yaml").write_text("seed: 0\ntrainer: {max_steps: 20}\n")
    if evaluation is not None:
        overlays = folder / "evaluation/overlays"
        overlays.mkdir(parents=True)
        (folder / "evaluation/summary.json").write_text(json.dumps(evaluation))
        (folder / "evaluation/images.csv").write_text(images_csv(images))
        (folder / "evaluation/classes.csv").write_text(
            "class,metric,network,mean,low,high,n\nobject,iou,policy,0.65,0.55,0.75,4\n"
            "object,iou,reference,0.5,0.4,0.6,4\nobject,iou,difference,0.15,0.05,0.25,4\n"
        )
        for name in ("better_1_a", "better_2_b", "worse_1_c"):
            (overlays / f"{name}.png").write_bytes(png())
    return folder


class Page(HTMLParser):
    """A parsed page: text, addresses, tables as rows of cells, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.words, self.addresses, self.tags, self.open = [], [], [], []
        self.rows, self.blocks, self.policy = [], [""], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag in BLOCKS:
            self.blocks.append("")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
            self.blocks[-1] += data
        if self.rows and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data}".strip()

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def says(self, *facts):
        """Return whether one paragraph, item or heading holds all these words."""
        return any(all(fact in block for fact in facts) for block in self.blocks)

    def row(self, first):
        return next(row for row in self.rows if row[0] == first)
