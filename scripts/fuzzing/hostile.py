"""Values that a hostile file may hold: paths, numbers, code to call."""

from dataclasses import dataclass
from random import Random
from typing import Any

from fuzzing.place import TOKEN, Place

DEEP = "@@deep@@"
NUMBERS = (
    0, -1, 1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 5e7, 1e18,
    1e308, -1e308, 0.5, -0.5, 1e-320, 100_000, 10_000_000,
)  # fmt: skip
LITERALS: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    "",
    float("nan"),
    float("inf"),
    -float("inf"),
    [[]],
    {"": {}},
    [None],
    DEEP,
)


@dataclass(frozen=True)
class Hostile:
    """Draws hostile values that point into a place."""

    place: Place

    def number(self, rng: Random) -> Any:
        """Return a number at the edge of some type."""
        return rng.choice(NUMBERS)

    def text(self, rng: Random) -> str:
        """Return a text: a path that leaves the folder, an interpolation, or odd characters."""
        root, canary = self.place.root, self.place.canary
        up = "../" * rng.randint(1, 5)
        return rng.choice(
            (
                f"{up}{TOKEN}", f"/{up}{TOKEN}.png", f"{up}secret.png", str(canary), f"{root}/secret.png", "..", ".",
                f".png/{up}{TOKEN}.png", f"a/{up}{TOKEN}", "..\\..\\x", "a\0b", "line\nline", "\ud800", "a" * 5000, "",
                " ", "é漢", "-1", "1e9", "nan", f"~/{TOKEN}", f"file://{canary}", "http://127.0.0.1:9/x", "con", "a|b",
                "a>b", "/",                f"{root}/secret.pt", f"{TOKEN}_module.run", "os.system", "tu-hf-hub:x/y",
                f"tu-local-dir:{root}",
                "${oc.env:HOME}", "${oc.create:{a: 1}}", "${seed}", "${", "${oc.select:a}", "${hydra:runtime.cwd}",
                "IMAGENET1K_V1", "imagenet", "%s%n", "<b>", "[red]",
            )
        )  # fmt: skip

    def call(self, rng: Random) -> Any:
        """Return a node that would run code or touch files if it were instantiated."""
        node: Any = rng.choice(self._calls())
        for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
            wrapped: Any = {"_target_": rng.choice(("torch.nn.Sequential", "torch.nn.ModuleList")), "_args_": [node]}
            forms: tuple[Any, ...] = (wrapped, {"x": node}, [node])
            node = rng.choice(forms)
        form = rng.random()
        if form < 0.25:
            return "${oc.create:" + _flow(node) + "}"
        return {**node, "_partial_": True} if form < 0.35 and isinstance(node, dict) else node

    def target(self, rng: Random) -> str:
        """Return a name that a node may try to call."""
        calls = [str(node["_target_"]) for node in self._calls()]
        return rng.choice(
            (*calls, "torch.nn.os.system", "torch.nn.Module.apply", "torch", "torch.nn", "", "a..b", "nope")
        )

    def _calls(self) -> list[dict[str, Any]]:
        root, canary = str(self.place.root), str(self.place.canary)
        code = f"__import__('pathlib').Path({canary!r}).touch()"
        path = {"_target_": "pathlib.Path", "_args_": [canary]}
        secret = f"{root}/secret.pt"
        listed: list[tuple[str, list[Any], dict[str, Any]]] = [
            ("os.system", [f"touch {canary}"], {}),
            ("subprocess.check_output", [["touch", canary]], {}),
            ("builtins.exec", [code], {}),
            ("builtins.eval", [code], {}),
            ("sympy.sympify", [code], {}),
            ("pathlib.Path.write_text", [path, "x"], {}),
            ("pathlib.Path.touch", [path], {}),
            ("torch.load", [secret], {"weights_only": False}),
            ("torch.nn.os.system", [f"touch {canary}"], {}),
            ("torch.hub.load", [root, "run"], {"source": "local", "trust_repo": True}),
            ("torch.package.PackageImporter", [secret], {}),
            ("torch.utils.cpp_extension.load", ["x", [f"{root}/x.cpp"]], {}),
            ("torch.save", [{}, canary], {}),
            ("timm.models.load_state_dict", [secret], {"weights_only": False}),
            ("timm.models.load_checkpoint", [{"_target_": "torch.nn.ReLU"}, secret], {"weights_only": False}),
            ("timm.models.create_model", [f"local-dir:{root}"], {"pretrained": True}),
            ("transformers.AutoModel.from_pretrained", [root], {"trust_remote_code": True}),
            ("transformers.models.auto.AutoModel.from_pretrained", [root], {"trust_remote_code": True}),
            ("transformers.models.auto.modeling_auto.AutoModel.from_pretrained", [root], {"trust_remote_code": True}),
            ("torchvision.datasets.utils.extract_archive", [f"{root}/secret.zip", root], {}),
            ("torchvision.datasets.utils._decompress", [f"{root}/secret.zip", canary], {}),
            ("torchvision.datasets.utils.download_url", ["http://127.0.0.1:9/x", root], {}),
            ("torchvision.datasets.OxfordIIITPet", [root], {"download": True}),
            ("segdpo.files.write_atomically", [canary, "x"], {}),
            ("segdpo.models.save_weights", [canary, {"_target_": "torch.nn.ReLU"}], {}),
            ("segdpo.models.transformers_model", [root], {}),
            ("segdpo.data.write_folder", [canary, [], ["a", "b"]], {}),
            ("segdpo.data.open_source", [f"{root}/x.yaml", []], {}),
            ("albumentations.load", [f"{root}/x.json"], {}),
            ("albumentations.Lambda", [], {"image": {"_target_": f"{TOKEN}_module.run"}}),
            ("hydra.utils.instantiate", [{"_target_": "os.system", "_args_": [f"touch {canary}"]}], {}),
            ("hydra.utils.get_method", ["os.system"], {}),
            ("hydra.utils.call", [{"_target_": f"{TOKEN}_module.run"}], {}),
            ("importlib.import_module", [f"{TOKEN}_module"], {}),
            ("runpy.run_path", [f"{root}/secret.py"], {}),
            ("pickle.loads", ["x"], {}),
            ("numpy.load", [secret], {"allow_pickle": True}),
            ("omegaconf.OmegaConf.save", [{}, canary], {}),
            ("logging.FileHandler", [canary], {}),
            ("functools.partial", [{"_target_": f"{TOKEN}_module.run"}], {}),
            ("operator.methodcaller", ["touch"], {}),
            (f"{TOKEN}_module.run", [], {}),
        ]
        return [{"_target_": name, **({"_args_": args} if args else {}), **named} for name, args, named in listed]


def _flow(node: Any) -> str:
    """Return a node in the flow style that OmegaConf's grammar reads."""
    if isinstance(node, dict):
        return "{" + ", ".join(f"{key}: {_flow(value)}" for key, value in node.items()) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(map(_flow, node)) + "]"
    return f'"{node}"' if isinstance(node, str) else str(node).lower() if isinstance(node, bool) else str(node)
