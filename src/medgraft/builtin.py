"""medgraft's own plugin: it uses the same hooks as any other; targets are strings, so nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from medgraft.plugin import BackboneSpec, DatasetSpec, MetricSpec, ScoreSpec, StrategySpec, hookimpl

_PRESETS = "medgraft.strategies.presets"


@hookimpl
def medgraft_backbones() -> Iterator[BackboneSpec]:
    """The models of the paper; weights come from a hub id or folder, as in `blip:Salesforce/blip-image-captioning-base`."""
    for name, summary, target, tiny in (
        ("blip", "BLIP captioning checkpoints", "blip:BlipBackbone", ("blip",)),
        ("blip2", "BLIP-2 with OPT or Flan-T5", "blip2:Blip2Backbone", ("blip2-opt", "blip2-t5")),
        (
            "instructblip", "InstructBLIP with Flan-T5 or Vicuna", "instructblip:InstructBlipBackbone",
            ("instructblip-t5", "instructblip-vicuna"),
        ),
        (
            "vit-gpt2", "ViT-GPT2 and other vision encoder-decoders", "vision_encoder_decoder:VisionEncoderDecoderBackbone",
            ("vit-gpt2", "deit-bert", "dinov2-trocr", "clip-bart", "swin-roberta", "beit-electra"),
        ),
    ):  # fmt: skip
        makers = {model: f"medgraft.testing.tiny:{model.replace('-', '_')}" for model in tiny}
        yield BackboneSpec(name, summary, f"medgraft.backbones.{target}", makers)


@hookimpl
def medgraft_strategies() -> Iterator[StrategySpec]:
    """The presets; `peft:<METHOD>` gives any other PEFT method."""
    for name, summary, target in (
        ("zero-shot", "nothing is trained", "ZERO_SHOT"),
        ("full", "every parameter is trained", "TRAINED_FULL"),
        ("encoder-frozen", "the decoder (and bridge) is trained, the vision tower frozen", "ENCODER_FROZEN"),
        ("decoder-frozen", "the vision tower (and bridge) is trained, the decoder frozen", "DECODER_FROZEN"),
        ("lora", "LoRA on the linear layers of every part", "LORA"),
        ("lora-decoder", "LoRA on the linear layers of the decoder", "LORA_DECODER"),
        ("qlora", "LoRA on every part, base held in 4-bit NF4", "QLORA"),
        ("qlora-decoder", "LoRA on the decoder, base held in 4-bit NF4", "QLORA_DECODER"),
        ("lora-int8", "LoRA on every part, base held in 8-bit integers", "LORA_INT8"),
        ("dora", "weight-decomposed LoRA on every part", "DORA"),
        ("rslora", "LoRA of rank 64 on every part, with the scale of rank-stabilised LoRA", "RSLORA"),
        ("lora-plus", "LoRA on every part, its B at 16 times the learning rate of A", "LORA_PLUS"),
        ("pissa", "LoRA on every part, starting from the base's largest singular values", "PISSA"),
        ("vera", "two trained vectors a layer on every part, between random matrices that all share", "VERA"),
        ("oft", "orthogonal rotations of each layer's input on every part", "OFT"),
        ("ia3", "learned scales on attention and MLP activations", "IA3"),
        ("bitfit", "biases only", "BITFIT"),
        ("norm-tuning", "normalisation layers only", "NORM_TUNING"),
    ):
        yield StrategySpec(name, summary, f"{_PRESETS}:{target}")


@hookimpl
def medgraft_datasets() -> Iterator[DatasetSpec]:
    """Readers for common layouts of captioned medical images, and the embedded phantoms."""
    for name, summary, target in (
        ("phantoms", "synthetic radiology images, generated on first use", "medgraft.data.phantoms:Phantoms"),
        ("roco", "ROCO v1 folder (train|validation|test/radiology/captions.txt)", "medgraft.data.roco:Roco"),
        ("roco-kaggle", "ROCO as on Kaggle (all_data/)", "medgraft.data.roco:KaggleRoco"),
        ("rocov2", "ROCOv2 folder (train_captions.csv, train_images/)", "medgraft.data.roco:Rocov2"),
        ("imageclef", "ImageCLEFmedical caption files of 2022 to 2024", "medgraft.data.roco:ImageClef"),
        ("csv", "table with named columns, separated by commas or semicolons", "medgraft.data.tables:CsvTable"),
        ("tsv", "tab-separated table with named columns", "medgraft.data.tables:TsvTable"),
        ("json", "JSON array, lists by split, or conversations", "medgraft.data.json_lists:JsonTable"),
        ("jsonl", "one JSON object a line", "medgraft.data.json_lists:JsonlTable"),
        ("coco", "COCO captions JSON", "medgraft.data.coco:CocoCaptions"),
        ("imagefolder", "Hugging Face imagefolder (metadata.csv, .jsonl, .parquet)", "medgraft.data.imagefolder:ImageFolder"),
        ("hf", "Hugging Face data set: hub id, save_to_disk folder, parquet, arrow", "medgraft.data.hub:HubDataset"),
        ("webdataset", "tar archives of images with captions", "medgraft.data.webdataset:WebDataset"),
    ):
        yield DatasetSpec(name, summary, target)


@hookimpl
def medgraft_metrics() -> Iterator[MetricSpec]:
    """The COCO caption scores, further text scores, facts, concepts and saliency."""
    for name, summary, target, scores in (
        ("bleu", "BLEU-1..4 by COCO's rules", "bleu:Bleu", _BLEU),
        ("rouge_l", "ROUGE-L by COCO's rules", "rouge_l:RougeL", _of("rouge_l", "ROUGE-L", "longest common word sequence")),
        ("cider", "CIDEr-D by COCO's rules", "cider:Cider", _of("cider", "CIDEr", "shared n-grams, rare ones count more")),
        ("rouge_1", "ROUGE-1 by ImageCLEFmedical's rules", "imageclef:Rouge1", _of("rouge_1", "ROUGE-1", "shared words, F1")),
        (
            "bertscore", "BERTScore as bertscore:HUB_ID_OR_FOLDER", "bertscore:BertScore",
            _of("bertscore", "BERTScore", "similarity of the words' embeddings in a language model"),
        ),
        ("clinical", "modality, side, findings, measurements, by their words", "clinical:Clinical", _CLINICAL),
        ("facts", "facts of phantoms: study, view, finding, side, site", "facts:PhantomFacts", _FACTS),
        ("meteor", "METEOR by nltk", "meteor:Meteor", _of("meteor", "METEOR", "aligned words, also by stem and synonym")),
        (
            "spice", "SPICE; needs java and CoreNLP models", "spice:Spice",
            _of("spice", "SPICE", "shared objects, attributes and relations, F1"),
        ),
        ("concepts", "UMLS concept F1 as concepts:TERMS.csv", "concepts:Concepts", _CONCEPTS),
        ("localization", "whether attention points at the finding", "localization:Localization", _LOCALIZATION),
        ("faithfulness", "deletion and insertion curves of maps", "faithfulness:Faithfulness", _FAITHFULNESS),
    ):  # fmt: skip
        yield MetricSpec(name, summary, f"medgraft.metrics.{target}", scores)


def _of(name: str, label: str, summary: str) -> tuple[ScoreSpec, ...]:
    """The one score of a metric."""
    return (ScoreSpec(name, summary, label=label),)


_BLEU = tuple(
    ScoreSpec(f"bleu_{n}", f"shared {what}, times a penalty for short captions", label=f"BLEU-{n}", detail=n < 4)
    for n, what in enumerate(("words", *(f"sequences of 1 to {n} words" for n in (2, 3, 4))), start=1)
)
_CLINICAL = (
    ScoreSpec("finding_f1", "findings named and in the reference, F1, by a list of words", label="findings"),
    ScoreSpec("finding_precision", "named findings that are in the reference", detail=True),
    ScoreSpec("finding_recall", "findings of the reference that are named", detail=True),
    ScoreSpec("modality_accuracy", "images with the reference's modality named", detail=True),
    ScoreSpec("side_contradicted", "images with the other side named, left for right", "lower", detail=True),
    ScoreSpec("side_omitted", "images whose side is left out", "lower", detail=True),
    ScoreSpec("unsupported_measurement", "captions with a measurement that is in no reference", "lower", detail=True),
    ScoreSpec("finding_coverage", "references with a finding that the list knows", None, detail=True),
    ScoreSpec("modality_coverage", "references with a modality that the list knows", None, detail=True),
)
_FACTS = (
    ScoreSpec("fact_all", "images with every stated fact right", label="facts"),
    *(
        ScoreSpec(f"fact_{name}", f"images with the {name} right, where the reference states it", detail=True)
        for name in ("study", "view", "finding", "side", "site", "size")
    ),
)
_CONCEPTS = (
    ScoreSpec("concept_f1", "UMLS concepts in caption and data, F1", label="concepts"),
    ScoreSpec("concept_precision", "the caption's concepts that the data have", detail=True),
    ScoreSpec("concept_recall", "the data's concepts that the caption has", detail=True),
    ScoreSpec("concept_coverage", "the data's concepts that are in the list of terms", None, detail=True),
)
_LOCALIZATION = tuple(
    ScoreSpec(
        f"{name}_{what}", summary.format(what), label="point" if (name, what) == ("pointing", "finding") else "",
        detail=(name, what) != ("pointing", "finding"),
        controls={f"{name}_{what}_uniform": "a uniform map", f"{name}_{what}_untrained": "an untrained decoder"},
    )
    for name, summary in (
        ("pointing", "how often attention at the {}'s words is highest on the finding"),
        ("energy", "share of the attention at the {}'s words that is on the finding"),
        ("iou", "overlap of the attention at the {}'s words with the finding"),
    )
    for what in ("finding", "side", "site")
)  # fmt: skip
_FAITHFULNESS = tuple(
    replace(score, controls={f"{score.name}_random": "a random order"})
    for score in (
        ScoreSpec("deletion", "the caption's probability while the highest patches are removed", "lower"),
        ScoreSpec("insertion", "the caption's probability while the highest patches are added"),
    )
)
