"""Every yaml of conf/model and conf/adapter composes, builds, and gives logits of the image's size."""

import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from segdpo.models import Segmenter, wrap

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))

# As small as each may be, so that this takes seconds; where nothing stands, the yaml itself is built.
UNET = ["+model.encoder_depth=3", "+model.decoder_channels=[16,8,8]"]
SMALL = {
    "unetplusplus": UNET,
    "deeplabv3plus": ["+model.decoder_channels=16"],
    "segformer_hf": [
        *(f"+model.network_factory.{key}=[1,1,1,1]" for key in ("depths", "num_attention_heads")),
        "+model.network_factory.hidden_sizes=[8,8,8,8]",
        "+model.network_factory.decoder_hidden_size=8",
    ],
    "smp": ["model.architecture=linknet"],
    "target": [
        "model.network_factory._target_=torch.nn.Conv2d",
        "model.classes_argument=out_channels",
        "+model.network_factory.in_channels=3",
        "+model.network_factory.kernel_size=1",
    ],
}


def built(name, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return instantiate(compose(overrides=[f"+model={name}", *overrides]).model)


@pytest.mark.parametrize(("name", "classes"), [(name, 2 + index % 2 * 2) for index, name in enumerate(MODELS)])
def test_a_model_yaml_gives_logits_of_the_images_size(name, classes):
    segmenter = built(name, f"model.classes={classes}", *SMALL.get(name, []))
    assert isinstance(segmenter, Segmenter)
    assert segmenter.classes == classes
    with torch.no_grad():
        logits = segmenter.eval()(torch.randn(2, 3, 40, 56))
    assert logits.shape == (2, 1 if classes == 2 else 4, 40, 56)
    assert logits.isfinite().all()


def test_classes_have_to_come_from_somewhere():
    with pytest.raises(Exception, match="null takes the number from the data"):
        built("unet", *UNET)


@pytest.mark.parametrize("path", sorted([*CONF.glob("model/*.yaml"), *CONF.glob("adapter/*.yaml")]), ids=str)
def test_a_yaml_says_what_it_is_and_its_command_composes(path):
    first, *rest = path.read_text().splitlines()[:8]
    assert first.startswith("# ")
    (command,) = [line for line in rest if line.startswith("#   segdpo train ")]
    group = path.parent.name
    overrides = re.findall(r"\+?[\w.]+=\S+", command)
    assert f"{group}={path.stem}" in overrides
    chosen = [f"+{o}" if o == f"{group}={path.stem}" else o for o in overrides if o.lstrip("+").startswith(group)]
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(overrides=chosen)
    assert config[group]._target_.startswith("segdpo.models.")


def test_the_commands_that_need_no_download_build():
    assert built("deeplabv3plus", "+model.encoder_output_stride=8", "model.classes=2").multiple == 8
    manet = built("smp", "model.architecture=manet", "model.encoder_name=tu-convnext_atto", "model.classes=2")
    assert type(manet.network).__name__ == "MAnet"
    unet = built(
        "unet", "+model.decoder_attention_type=scse", "+model.decoder_channels=[128,64,32,16,8]", "model.classes=2"
    )
    assert unet.network.segmentation_head[0].weight.shape == (1, 8, 3, 3)


def test_adapter_yamls_are_called_with_the_network():
    network = wrap(lambda num_classes: nn.Conv2d(3, num_classes, 1), classes=2)
    with initialize_config_dir(str(CONF), version_base=None):
        none = instantiate(compose(overrides=["+adapter=none"]).adapter)
        lora = instantiate(compose(overrides=["+adapter=lora", "adapter.rank=3"]).adapter)
    assert none(network) is network
    trainable = {name: tuple(p.shape) for name, p in lora(network).named_parameters() if p.requires_grad}
    assert trainable == {
        "network.lora_A.default.weight": (3, 3, 1, 1),
        "network.lora_B.default.weight": (1, 3, 1, 1),
    }
