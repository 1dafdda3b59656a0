"""Published encoders become ours: what the original module would compute is what our encoder
predicts.
"""

import json
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import nn

from ubrain import checkpoint
from ubrain.backbone import Backbone
from ubrain.cli import app
from ubrain.config import BackboneConfig
from ubrain.errors import UbrainError
from ubrain.exchange import hub
from ubrain.exchange.released import NSD, import_released, parse_subjects, show

E, C, D, R, P, BLOCKS = (
    16,
    8,
    384,
    3,
    5,
    (1, 4, 9, 12),
)  # a DINOv2 small at 28 px: 2 × 2 patches and the class token
VOXELS = {"a": 7, "b": 13}


class MapAttention_dynamic_pos(nn.Module):
    """Spatial attention of the original: scores of every voxel with every token, without
    1/sqrt(E).
    """

    def __init__(self):
        super().__init__()
        self.project, self.project_x = nn.Linear(E, E), nn.Linear(C, E)
        self.softmax, self.sqrt_dim = True, np.sqrt(E)

    def forward(self, e, x, position):
        pooled = torch.empty(len(x), len(e), C, dtype=x.dtype)
        for b, tokens in enumerate(x):
            for v, query in enumerate(self.project(e)):
                scores = torch.stack(
                    [query @ (self.project_x(tokens[p]) + position[p]) for p in range(P)]
                )
                pooled[b, v] = scores.softmax(0) @ tokens
        return pooled


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2, self.drop = (
            nn.Linear(C, 4 * C),
            nn.GELU(),
            nn.Linear(4 * C, C),
            nn.Dropout(0.0),
        )

    def forward(self, x):
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class encoder_param:
    def __init__(self, n_voxels):
        self.num_voxels, self.inner_ch, self.drop_out, self.embed_dim_vox = n_voxels, C, 0.125, E


class DinoVisionTransformer(nn.Module):
    """Stands in for the stock backbone in the file; the test gives the original a real one."""

    def __init__(self):
        super().__init__()
        self.cls_token, self.norm = nn.Parameter(torch.zeros(1, 1, D)), nn.LayerNorm(D, eps=1e-6)


class Encoder(nn.Module):
    """The original, from its formulas: backbone blocks with adapters, attention, functional
    attention over all levels.
    """

    def __init__(self, n_voxels, scale=0.25):
        super().__init__()
        self.param, self.embed_model = encoder_param(n_voxels), DinoVisionTransformer()
        self.select_layers, self.r, self.lora_scale = list(BLOCKS), R, scale
        self.include_reg_tokens, self.num_reg_tokens = False, 4
        self.voxel_embed, self.layer_embed = (
            nn.Parameter(torch.randn(n_voxels, E)),
            nn.Parameter(torch.randn(E, len(BLOCKS))),
        )
        self.feat_embed, self.pos_embed = (
            nn.Parameter(torch.randn(E, len(BLOCKS) * C)),
            nn.Parameter(torch.randn(P, E)),
        )
        levels = range(len(BLOCKS))
        self.in_project = nn.ModuleList(nn.Linear(D, C) for _ in levels)
        self.norm_in = nn.ModuleList(nn.LayerNorm(D) for _ in levels)
        self.norm = nn.ModuleList(nn.LayerNorm(C) for _ in levels)
        self.map_att = nn.ModuleList(MapAttention_dynamic_pos() for _ in levels)
        self.mlp = nn.ModuleList(Mlp() for _ in levels)
        self.DO = nn.ModuleList(nn.Dropout(0.125) for _ in levels)
        self.lora_A = nn.ModuleList(nn.Linear(R, D, bias=False) for _ in range(12))
        self.lora_B = nn.ModuleList(nn.Linear(D, R, bias=False) for _ in range(12))
        for norm in (*self.norm, *self.norm_in):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, vit, images, voxels, registers="prefix"):
        x = vit.norm_pre(
            vit._pos_embed(vit.patch_embed(images))
        )  # class token, 4 registers, patches
        e, levels = self.voxel_embed[voxels], []
        for i, block in enumerate(vit.blocks):
            x = block(x)
            x = x + self.lora_A[i](self.lora_B[i](x)) * self.lora_scale
            if i + 1 in self.select_layers:
                kept = torch.cat([x[:, :1], x[:, 5:]], 1) if registers == "prefix" else x[:, :-4]
                n = len(levels)
                z = self.DO[n](
                    self.norm[n](
                        self.map_att[n](
                            e, self.in_project[n](self.norm_in[n](kept)), self.pos_embed
                        )
                    )
                )
                levels.append(z + self.mlp[n](z))
        return (torch.cat(levels, -1) * (e @ self.feat_embed)).sum(-1)


@pytest.fixture(autouse=True)
def their_modules(monkeypatch):
    """The classes above, where a file names those of the authors."""
    homes = {
        "models.encoder_models": (Encoder, encoder_param),
        "models.layers_encoder": (MapAttention_dynamic_pos, Mlp),
        "dinov2.models.vision_transformer": (DinoVisionTransformer,),
    }
    for home, classes in homes.items():
        module = types.ModuleType(home)
        for cls in classes:
            monkeypatch.setattr(cls, "__module__", home)
            setattr(module, cls.__name__, cls)
        monkeypatch.setitem(sys.modules, home, module)
        monkeypatch.setitem(sys.modules, home.split(".")[0], types.ModuleType(home.split(".")[0]))


@pytest.fixture
def original():
    torch.manual_seed(0)
    return Encoder(sum(VOXELS.values())).eval()


@pytest.fixture
def file(original, tmp_path):
    torch.save(original, tmp_path / "encoder.pth")
    return tmp_path / "encoder.pth"


def parts(original):
    """The same encoder as the two files of those who re-use it."""
    state = {k: v for k, v in original.state_dict().items() if not k.startswith("embed_model.")}
    config = {
        "param": vars(original.param),
        "select_layers": list(BLOCKS),
        "r": R,
        "alpha": original.lora_scale * R,
        "include_reg_tokens": False,
        "num_reg_tokens": 4,
    }
    voxels = {"voxel_embed": state.pop("voxel_embed")}
    return {"config": config, "shared": state}, voxels


def loaded(folder, dtype=torch.float32):
    """Our encoder with its backbone, which gets random weights, since there is no stock here."""
    backbone = Backbone(replace(checkpoint.backbone_config(folder), weights="random"))
    with torch.no_grad():
        for name, p in backbone.model.named_parameters():
            if (
                "ls" in name or "token" in name
            ):  # layer scale starts at 1e-5, which would hide the blocks
                p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    encoder = checkpoint.load(folder, backbone.adapters)
    return backbone.to(dtype), encoder.to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("registers", ["prefix", "last"])
def test_an_imported_encoder_predicts_what_the_original_computes(
    original, file, tmp_path, dtype, tolerance, registers
):
    import_released(file, tmp_path / "ours", subjects=VOXELS, registers=registers)
    backbone, encoder = loaded(tmp_path / "ours", dtype)
    images = torch.randn(3, 3, 28, 28, dtype=dtype, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        # the original runs the same blocks without the hooks that add our adapters
        theirs = plain(
            backbone, lambda vit: original.to(dtype)(vit, images, torch.arange(20), registers)
        )
        ours = torch.cat([encoder(backbone(images), name) for name in VOXELS], 1)
    assert theirs.std() > 1
    torch.testing.assert_close(
        ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max())
    )


def plain(backbone, compute):
    """`compute(vit)` with the adapters switched off for as long as it takes."""
    up = [adapter[1].weight for adapter in backbone.adapters]
    kept = [w.clone() for w in up]
    for w in up:
        w.zero_()
    try:
        return compute(backbone.model)
    finally:
        for w, before in zip(up, kept, strict=True):
            w.copy_(before)


def test_the_files_of_re_users_give_the_same_encoder(original, file, tmp_path):
    for content, name in zip(parts(original), ("shared.pt", "voxels.pt"), strict=True):
        torch.save(content, tmp_path / name)
    torch.save(original.state_dict(), tmp_path / "state.pt")
    import_released(file, tmp_path / "whole", subjects=VOXELS)
    import_released(
        tmp_path / "shared.pt",
        tmp_path / "two",
        voxel_embed=tmp_path / "voxels.pt",
        subjects=VOXELS,
    )
    import_released(
        tmp_path / "state.pt",
        tmp_path / "state",
        subjects=VOXELS,
        lora_scale=0.25,
        backbone=checkpoint.backbone_config(tmp_path / "whole"),
    )
    weights = [
        load_file(tmp_path / name / checkpoint.WEIGHTS) for name in ("whole", "two", "state")
    ]
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=0)
    assert checkpoint.backbone_config(tmp_path / "two") == checkpoint.backbone_config(
        tmp_path / "whole"
    )


def test_the_backbone_and_what_was_assumed_is_said(file, tmp_path):
    report = "\n".join(import_released(file, tmp_path / "ours", subjects=VOXELS))
    for words in (
        "whole module models.encoder_models.Encoder",
        "E = 16, C = 8, L = 4, P = 5, D = 384",
        "a=7, b=13, as told",
        "vit_small_patch14_reg4_dinov2.lvd142m at 28 px, output of blocks 1, 4, 9, 12",
        "adapters: 12 of rank 3, LoRA scale alpha / r = 0.25 (as the file says)",
        "registers: 'prefix' assumed",
        "left out: 3 tensors of embed_model.*",
        "left out: layer_embed",
    ):
        assert words in report, words
    bones = checkpoint.backbone_config(tmp_path / "ours")
    assert (bones.levels, bones.adapter_rank, bones.adapter_alpha) == ((0, 3, 8, 11), R, 0.25 * R)
    told = checkpoint.describe(tmp_path / "ours")
    assert told.config.dropout == 0.125
    assert len(told.facts["source"]["sha256"]) == 64
    assert "without a licence" in (tmp_path / "ours" / hub.CARD).read_text()


def test_a_scale_that_no_file_says_is_that_of_the_paper_and_said_so(original, tmp_path):
    shared, _ = parts(original)
    del shared["config"]["alpha"]
    torch.save(shared, tmp_path / "shared.pt")
    report = "\n".join(import_released(tmp_path / "shared.pt", tmp_path / "ours"))
    assert "that of the paper, assumed" in report
    assert checkpoint.backbone_config(tmp_path / "ours").adapter_alpha == pytest.approx(
        BackboneConfig.adapter_alpha
    )
    assert "subjects: none" in report
    assert checkpoint.describe(tmp_path / "ours").subjects == {}


def test_the_voxels_of_nsd_are_known_by_their_number(original, tmp_path):
    original.voxel_embed = nn.Parameter(torch.randn(1, E).expand(315_997, E).contiguous())
    torch.save(original, tmp_path / "nsd.pth")
    report = "\n".join(import_released(tmp_path / "nsd.pth", tmp_path / "ours"))
    assert "subj01=39548" in report
    assert "assumed, since 315997 voxels are those of NSD" in report
    assert checkpoint.describe(tmp_path / "ours").subjects == NSD
    assert sum(NSD.values()) == 315_997
    assert list(NSD.values())[5:] == [39198, 39548, 39511]


@pytest.mark.parametrize(
    ("subjects", "message"),
    [
        (None, "has 20 voxels and does not say whose"),
        ({"a": 7, "b": 12}, "has 20 voxels; .* got a=7, b=12"),
        ({"a": 7, "b": None}, "got a=7, b=None"),
        ({"a": 20, "b": 0}, "got a=20, b=0"),
        ({"../a": 20}, "name '../a'"),
    ],
)
def test_subjects_that_do_not_share_out_the_voxels_are_refused(file, tmp_path, subjects, message):
    with pytest.raises(UbrainError, match=message):
        import_released(file, tmp_path / "ours", subjects=subjects)
    assert not (tmp_path / "ours").exists()


def test_one_name_is_the_subject_of_all_voxels(file, tmp_path):
    import_released(file, tmp_path / "ours", subjects=parse_subjects("S1"))
    assert checkpoint.describe(tmp_path / "ours").subjects == {"S1": 20}
    assert parse_subjects("a=7, b=13") == VOXELS
    for wrong in ("a=x", "a=-1", "a=1,a=2", "", "a=1,"):
        with pytest.raises(UbrainError, match=r"--subjects|name"):
            parse_subjects(wrong)


def without(name):
    return lambda m: delattr(m, name)


def changed(path, value):
    def change(module):
        *way, last = path.split(".")
        for name in way:
            module = module[int(name)] if name.isdigit() else getattr(module, name)
        setattr(module, last, value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("pos_embed"), "has no 'pos_embed', so it is not an encoder"),
        (without("lora_B"), "12 missing: lora_B.0.weight, lora_B.1.weight.*"),
        (lambda m: m.norm.append(nn.LayerNorm(C)), "2 unexpected: norm.4.bias, norm.4.weight"),
        (
            lambda m: m.register_parameter("temperature", nn.Parameter(torch.ones(1))),
            "1 unexpected: temperature",
        ),
        (
            changed("feat_embed", nn.Parameter(torch.zeros(E, 3 * C))),
            r"feat_embed is \(16, 24\), expected \(16, 32\)",
        ),
        (changed("mlp.2.fc1", nn.Linear(C, 2 * C)), r"mlp.2.fc1.bias is \(16,\), expected \(32,\)"),
        (
            changed("voxel_embed", nn.Parameter(torch.zeros(20, E + 1))),
            r"voxel_embed: expected \(V, 16\), got \(20, 17\)",
        ),
        (changed("pos_embed", nn.Parameter(torch.zeros(6, E))), "6 tokens, .* name the backbone"),
        (changed("norm.1.eps", 1e-6), "norm.1 is a .*LayerNorm with eps = 1e-06"),
        (changed("map_att.0.softmax", False), "map_att.0 is a .* with softmax = False"),
        (changed("mlp.3.act", nn.SiLU()), "mlp.3.act is a torch.nn.modules.activation.SiLU"),
        (changed("mlp.3.act", nn.GELU("tanh")), "mlp.3.act .* approximate = tanh"),
        (changed("include_reg_tokens", True), "with the register tokens kept"),
        (changed("num_reg_tokens", 0), "0 registers"),
        (changed("select_layers", [1, 2, 3]), r"4 levels, but outputs of blocks \[1, 2, 3\]"),
        (changed("select_layers", [1, 2, 3, 13]), "4 levels, but outputs of blocks"),
        (changed("param.drop_out", "much"), "dropout of 'much'"),
    ],
)
def test_a_module_that_is_not_our_encoder_is_refused_with_the_reason(
    original, tmp_path, change, message
):
    change(original)
    torch.save(original, tmp_path / "odd.pth")
    with pytest.raises(UbrainError, match=message):
        import_released(tmp_path / "odd.pth", tmp_path / "ours", subjects=VOXELS)
    assert not (tmp_path / "ours").exists()


class Trainer(nn.Module):
    """A class of nobody's."""


def test_an_unknown_class_is_refused_by_name(original, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "__module__", __name__)
    original.helper = Trainer()
    torch.save(original, tmp_path / "odd.pth")
    with pytest.raises(
        UbrainError, match=r"names '[\w.]*test_released\.Trainer', which is not on the list"
    ):
        import_released(tmp_path / "odd.pth", tmp_path / "ours", subjects=VOXELS)


def test_files_that_hold_something_else_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "linear.pt")
    for name, message in (
        ("list.pt", "holds list"),
        ("dict.pt", "holds dict"),
        ("linear.pt", "it is a torch.nn"),
    ):
        with pytest.raises(UbrainError, match=message):
            import_released(tmp_path / name, tmp_path / "ours")


def test_a_wrapped_module_is_unwrapped(original, tmp_path):
    torch.save(nn.DataParallel(original), tmp_path / "wrapped.pth")
    import_released(tmp_path / "wrapped.pth", tmp_path / "ours", subjects=VOXELS)
    assert checkpoint.describe(tmp_path / "ours").subjects == VOXELS


def test_an_unknown_register_convention_is_refused(file, tmp_path):
    with pytest.raises(UbrainError, match="registers 'first': expected one of prefix, last"):
        import_released(file, tmp_path / "ours", subjects=VOXELS, registers="first")


def test_import_and_show_work_from_the_command_line(file, tmp_path):
    def run(*words):
        return CliRunner().invoke(app, ["checkpoint", *map(str, words)])

    done = run(
        "import", file, "--out", tmp_path / "ours", "--subjects", "a=7,b=13", "--registers", "last"
    )
    assert done.exit_code == 0, done.output
    assert "registers: 'last' as told" in done.output
    assert checkpoint.backbone_config(tmp_path / "ours").registers == "last"
    shown = run("show", file).output
    for words in (
        "voxels: 20",
        "E = 16, C = 8",
        "feat_embed",
        "(16, 32)",
        "float32",
        "2.0 kB",
        "embed_model.*: 3",
        "lora_sc",
    ):
        assert words in shown, words
    assert "b: 13 voxels" in run("show", tmp_path / "ours").output


def test_show_does_not_send_control_characters_to_the_terminal(tmp_path):
    torch.save(
        {"config": {"note": "\x1b[2J"}, "shared": {"\x1b[31mred": torch.zeros(2)}},
        tmp_path / "odd.pt",
    )
    assert "\x1b" not in show(tmp_path / "odd.pt")
    assert json.dumps("\x1b[2J") in show(tmp_path / "odd.pt")
    with pytest.raises(UbrainError, match="not an encoder") as caught:
        import_released(tmp_path / "odd.pt", tmp_path / "ours")
    assert "\x1b" not in str(caught.value)
