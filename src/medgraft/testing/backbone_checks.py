"""Checks the contract of a backbone with real forward passes of one model in fp32."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from medgraft.backbones import Backbone, TextBatch
from medgraft.backbones.weights import tensor_digest
from medgraft.config import GenerationConfig
from medgraft.errors import BackboneError
from medgraft.saliency import caption_maps
from medgraft.testing.findings import Finding, require, run_checks
from medgraft.testing.samples import CAPTIONS, images
from medgraft.testing.study_checks import StudyChecks
from medgraft.types import PARTS, lies_in


def check_backbone(backbone_class: type[Backbone], source: str | Path) -> None:
    """ConformanceError unless the backbone with the weights in `source` passes every check."""
    require(backbone_findings(backbone_class, str(source)))


def backbone_findings(backbone_class: type[Backbone], source: str) -> Iterator[Finding]:
    """The result of each check of a backbone."""
    checks = _Checks(backbone_class, source)
    yield from run_checks(
        backbone_class.__name__,
        "backbone",
        (
            checks.loads, checks.prepares_images, checks.declares_seams, checks.owns_every_parameter,
            checks.knows_every_linear_layer, checks.builds_a_meta_model, checks.masks_labels, checks.has_one_loss,
            checks.ignores_padding, checks.takes_a_prompt_for_each_row, checks.cuts_long_captions,
            checks.resumes_at_every_seam, checks.depends_on_the_image, checks.generates_as_trained,
            checks.generates_alike_in_batches, checks.respects_limits, checks.gives_attention_maps, checks.takes_other_sizes,
            checks.takes_several_images, checks.survives_pickling, checks.refuses_other_models,
        ),
    )  # fmt: skip


class _Checks(StudyChecks):
    """The checks; the first one loads the model, and all share it."""

    def __init__(self, backbone_class: type[Backbone], source: str):
        self.backbone_class = backbone_class
        self.source = source
        self._loaded: Backbone | None = None

    @property
    def backbone(self) -> Backbone:
        if self._loaded is None:
            self._loaded = self.backbone_class.load(self.source)
        return self._loaded

    @property
    def prompt(self) -> str:
        return self.backbone_class.default_prompt

    def text(self, max_tokens: int = 160) -> TextBatch:
        return self.backbone.text_batch(CAPTIONS, prompt=self.prompt, max_tokens=max_tokens)

    @torch.no_grad()
    def features(self, count: int = 3) -> torch.Tensor:
        return self.backbone.encode(self.backbone.pixel_values(images(count)), prompt=self.prompt)

    def loads(self) -> None:
        """Loads in eval mode, in fp32, with the same fingerprint every time, which is of the loaded tensors."""
        backbone = self.backbone
        assert not any(module.training for module in backbone.model.modules()), "a module is in training mode"
        wrong = [n for n, p in backbone.model.named_parameters() if p.dtype != torch.float32]
        assert not wrong, f"not in fp32: {wrong[:3]}"
        assert backbone.source == self.source, f"source is {backbone.source!r} and not {self.source!r}"
        first, second = (self.backbone_class.fingerprint(self.source) for _ in range(2))
        assert first == second and len(first) == 64, "the fingerprint is not a constant SHA-256 in hex"
        loaded, digests = backbone.model.state_dict(), self.backbone_class.checkpoint_digests(self.source)
        other = [name for name in digests if name not in loaded or tensor_digest(loaded[name]) != digests[name].sha256]
        assert not other, f"{len(other)} loaded tensors are not those in the files, such as {other[0]}; override fingerprint"

    def prepares_images(self) -> None:
        """`pixel_values` is one tensor with a row for each image, whatever their shapes."""
        pixels = self.backbone.pixel_values(images())
        assert isinstance(pixels, torch.Tensor), (
            f"it is a {type(pixels).__name__}. docs/plugins.md has a section on models that need their own image processor"
        )
        assert len(pixels) == 3, (
            f"it has {len(pixels)} rows for 3 images; give each image the same number of tiles, [B, tiles, ...]"
        )

    def declares_seams(self) -> None:
        """Seams are named, and each includes the parts of the one below it."""
        seams, parts = self.backbone.seams, self.backbone.anatomy.parts
        assert seams, "there is no seam; declare one after the vision tower"
        assert len({seam.name for seam in seams}) == len(seams), "two seams have the same name"
        assert set(parts) <= set(PARTS), f"parts are {PARTS}, not {tuple(parts)}"
        below: set[str] = set()
        for seam in seams:
            assert below < set(seam.prefix) <= set(parts), f"seam {seam.name!r} has prefix {seam.prefix} above {sorted(below)}"
            below = set(seam.prefix)
        assert "text" not in below, "the text part reads the caption and cannot be below a seam"

    def owns_every_parameter(self) -> None:
        """Every parameter belongs to one part."""
        lost = [n for n, _ in self.backbone.model.named_parameters() if self.backbone.anatomy.part_of(n) is None]
        assert not lost, f"{len(lost)} parameters belong to no part, such as {lost[0]}"

    def knows_every_linear_layer(self) -> None:
        """Every linear layer has a role, and every part with layers has roles for them."""
        anatomy = self.backbone.anatomy
        linear = [n for n, m in self.backbone.model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
        lost = [name for name in linear if anatomy.role_of(name) is None and not lies_in(name, anatomy.never_run)]
        assert not lost, (
            f"{len(lost)} of {len(linear)} linear layers have no role, such as {lost[0]}. Add it to a role of its part, "
            "or to the anatomy's never_run if captioning does not use it"
        )
        for part in ("vision", "text"):
            roles = {anatomy.role_of(name) for name in linear if anatomy.part_of(name) == part}
            assert {"attn", "mlp"} <= roles, f"part {part!r} has roles {sorted(map(str, roles))} and lacks attn or mlp"

    def builds_a_meta_model(self) -> None:
        """The meta model has the model's parameters, on the meta device."""
        meta = {n: p.shape for n, p in self.backbone_class.meta_model(self.backbone.config).named_parameters()}
        loaded = {n: p.shape for n, p in self.backbone.model.named_parameters()}
        odd = sorted(set(meta.items()) ^ set(loaded.items()))
        assert not odd, f"{len(odd)} parameters differ, such as {odd[0][0]}"

    def masks_labels(self) -> None:
        """Labels are the caption and its end token, and nothing else."""
        text, backbone = self.text(), self.backbone
        for caption, labels in zip(CAPTIONS, text.labels, strict=True):
            labelled = labels[labels != -100].tolist()
            wanted = [*backbone.token_ids([caption])[0], backbone.end_id]
            assert labelled == wanted, f"for {caption!r} the labels are {labelled} and not {wanted}"

    def has_one_loss(self) -> None:
        """`loss` and its gradient by the features are those of `decode`."""
        text, found = self.text(), []
        for compute in (self.backbone.loss, lambda *inputs: self.backbone.decode(*inputs)[0]):
            features = self.features(2).clone().requires_grad_()
            loss = compute(features, text)
            found.append((loss.detach(), *torch.autograd.grad(loss, features)))
        for fast, plain in zip(*found, strict=True):
            torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)

    def ignores_padding(self) -> None:
        """Loss does not depend on padding."""
        text, features = self.text(), self.features(2)
        assert text.attention_mask.shape == text.input_ids.shape, "attention_mask and input_ids differ in shape"
        more = 5
        ids = nn.functional.pad(text.input_ids, (0, more), value=self.backbone.pad_id)
        mask = nn.functional.pad(text.attention_mask, (0, more), value=0)
        labels = nn.functional.pad(text.labels, (0, more), value=-100)
        with torch.no_grad():
            plain = self.backbone.decode(features, text)[0]
            padded = self.backbone.decode(features, TextBatch(ids, mask, labels))[0]
        torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-6)

    def takes_a_prompt_for_each_row(self) -> None:
        """Rows with prompts of different lengths are computed as each is alone."""
        prompts = (self.prompt, f"{self.prompt} Is there a nodule?")
        together = self._labelled_logits(range(2), prompts)
        for row, prompt in enumerate(prompts):
            (alone,) = self._labelled_logits([row], [prompt])
            assert torch.allclose(together[row], alone, rtol=1e-4, atol=1e-4), (
                f"row {row} of a batch has other logits than alone; `prompt` may be a list, with a prompt for each row"
            )

    @torch.no_grad()
    def _labelled_logits(self, rows: Sequence[int], prompts: Sequence[str]) -> list[torch.Tensor]:
        """The logits of the labels of captions with their prompts, [labels, V] of each of `rows`."""
        backbone, captions = self.backbone, [CAPTIONS[row] for row in rows]
        pixels = backbone.pixel_values([images(2)[row] for row in rows])
        text = backbone.text_batch(captions, prompt=prompts, max_tokens=160)
        logits = backbone.decode(backbone.encode(pixels, prompt=prompts), text)[1]
        places = [(labels != -100).nonzero()[:, 0] - backbone.logits_offset for labels in text.labels]
        return [of_row[at] for of_row, at in zip(logits, places, strict=True)]

    def cuts_long_captions(self) -> None:
        """Captions are truncated to max_tokens and to the model's limit, without an end token behind the cut."""
        backbone, caption = self.backbone, "word " * 6000
        head = len(backbone.prompt_ids(self.prompt))
        for limit in (head + 6, 10**6):
            text = backbone.text_batch([caption], prompt=self.prompt, max_tokens=limit)
            labelled = text.labels[text.labels != -100].tolist()
            assert labelled == backbone.token_ids([caption])[0][: len(labelled)], (
                "a truncated caption must be its first tokens alone, without an end token, as it does not end there"
            )
            assert 2 <= len(labelled) <= min(limit, backbone.max_positions), f"{len(labelled)} labels at max_tokens={limit}"

    def resumes_at_every_seam(self) -> None:
        """From stored features at any seam, loss and logits are bit-identical."""
        text, backbone = self.text(), self.backbone
        pixels = backbone.pixel_values(images(2))
        with torch.no_grad():
            whole = backbone.decode(backbone.encode(pixels, prompt=self.prompt), text)
            stored = [pixels]
            for seam in backbone.seams:
                stored.append(backbone.forward_to(seam.name, stored[-1], prompt=self.prompt))
            for i, seam in enumerate(backbone.seams, start=1):
                features = stored[i].clone()
                for above in backbone.seams[i:]:
                    features = backbone.forward_to(above.name, features, prompt=self.prompt)
                again = backbone.decode(features, text)
                assert torch.equal(again[0], whole[0]), f"seam {seam.name!r}: loss {again[0]} and not {whole[0]}"
                assert torch.equal(again[1], whole[1]), f"seam {seam.name!r}: logits differ"

    def depends_on_the_image(self) -> None:
        """The loss depends on the image."""
        text, features = self.text(), self.features(2)
        with torch.no_grad():
            same, other = (self.backbone.decode(f, text)[1] for f in (features, features.flip(0)))
        assert not torch.allclose(same, other), "another image gives the same logits"

    def generates_as_trained(self) -> None:
        """Generation starts where training does: its first token is the most likely one in teacher forcing."""
        text, features, backbone = self.text(), self.features(2), self.backbone
        head = torch.tensor([backbone.prompt_ids(self.prompt)] * 2)
        one = transformers.GenerationConfig(
            max_new_tokens=1, do_sample=False, pad_token_id=backbone.pad_id, eos_token_id=backbone.end_id
        )
        with torch.no_grad():
            generated = backbone.generate_ids(features, head, one)[:, -1]
            logits = backbone.decode(features, text)[1]
        first = int((text.labels[0] != -100).nonzero()[0])
        wanted = logits[:, first - backbone.logits_offset].argmax(-1)
        assert torch.equal(generated, wanted), (
            f"generation begins with {generated.tolist()}, training expects {wanted.tolist()}"
        )

    def generates_alike_in_batches(self) -> None:
        """A caption does not depend on the rest of the batch."""
        options, features = GenerationConfig(max_new_tokens=12), self.features()
        together = self.backbone.generate(features, prompt=self.prompt, options=options)
        alone = [self.backbone.generate(row[None], prompt=self.prompt, options=options)[0] for row in features]
        assert together == alone, f"together {together}, alone {alone}"
        beams = self.backbone.generate(features, prompt=self.prompt, options=GenerationConfig(max_new_tokens=6, num_beams=2))
        assert len(beams) == len(features), f"beam search gave {len(beams)} captions for {len(features)} images"

    def respects_limits(self) -> None:
        """max_new_tokens is respected, also if it exceeds the model's limit."""
        features = self.features(1)
        head = torch.tensor([self.backbone.prompt_ids(self.prompt)])
        short = transformers.GenerationConfig(
            max_new_tokens=3, do_sample=False, pad_token_id=self.backbone.pad_id, eos_token_id=self.backbone.end_id
        )
        with torch.no_grad():
            new = self.backbone.generate_ids(features, head, short)
        assert 1 <= new.shape[1] <= 4, f"{new.shape[1]} tokens for max_new_tokens=3"  # includes T5's start token
        self.backbone.generate(features, prompt=self.prompt, options=GenerationConfig(max_new_tokens=100_000))

    def gives_attention_maps(self) -> None:
        """With an attention layout, every word has a map over its own image, placed where the model sees the image."""
        backbone = self.backbone
        if backbone.attention_layout is None:
            return
        for ids, spans in zip(backbone.token_ids(CAPTIONS), backbone.token_spans(CAPTIONS), strict=True):
            assert len(ids) == len(spans), f"{len(ids)} tokens but {len(spans)} spans in the text"
        left, top, right, bottom = backbone.visible_region(60, 40)
        assert left < right and top < bottom and right > 0 and bottom > 0, f"{(left, top, right, bottom)} of 60 x 40 is visible"
        pixels = backbone.pixel_values(images(2))
        maps = caption_maps(backbone, pixels, CAPTIONS, prompt=self.prompt)
        assert [len(found.words) for found in maps] == [2, 10], "words are missing from its maps"
        grids = [word.grid for found in maps for word in found.words]
        assert all(grid.min() >= 0 and 0 < grid.sum() < 1.001 for grid in grids), "maps are not shares of attention"
        swapped = caption_maps(backbone, pixels.flip(0), CAPTIONS, prompt=self.prompt)
        same = [np.allclose(a.mean(), b.mean()) for a, b in zip(maps, swapped, strict=True)]
        assert not all(same), "another image gives the same maps"

    def takes_other_sizes(self) -> None:
        """With image.size, images of another size give a loss and captions, and larger maps."""
        step = self.backbone_class.image_step(self.backbone.config)
        if step is None:
            return
        backbone = self.backbone_class.load(self.source)
        exact = step > 1  # else the processor rounds sizes, or refuses them
        for patches in (5, 6) if exact else (64, 96):
            try:
                backbone.set_image_size(patches * step)
            except BackboneError:
                if exact:
                    raise
                continue
            pixels, text = backbone.pixel_values(images(2)), backbone.text_batch(CAPTIONS, prompt=self.prompt, max_tokens=160)
            with torch.no_grad():
                features = backbone.encode(pixels, prompt=self.prompt)
                assert torch.isfinite(backbone.decode(features, text)[0]), f"no loss at image.size={patches * step}"
            backbone.generate(features, prompt=self.prompt, options=GenerationConfig(max_new_tokens=2))
            if exact and backbone.attention_layout is not None:
                grid = caption_maps(backbone, pixels, CAPTIONS, prompt=self.prompt)[0].words[0].grid
                assert grid.shape == (patches, patches), f"at image.size={patches * step} a map has {grid.shape} patches"

    def survives_pickling(self) -> None:
        """Can be pickled for a worker process, where it prepares the same images and texts."""
        packed = pickle.dumps(self.backbone)
        copy = pickle.loads(packed)
        assert not hasattr(copy, "model"), "the model was pickled too"
        assert torch.equal(copy.pixel_values(images(2)), self.backbone.pixel_values(images(2))), "its pixels differ"
        assert torch.equal(copy.text_batch(CAPTIONS, prompt=self.prompt, max_tokens=160).input_ids, self.text(160).input_ids), (
            "its tokens differ"
        )

    def refuses_other_models(self) -> None:
        """A missing folder and another kind of model raise a BackboneError that names them."""
        with TemporaryDirectory() as folder:
            for source in (f"{folder}/none", folder):
                if source == folder:
                    transformers.BertConfig().save_pretrained(folder)
                try:
                    self.backbone_class.load(source)
                except BackboneError as error:
                    assert source in str(error), f"the error does not name {source}: {error}"
                else:
                    raise AssertionError(f"{source} was loaded")
