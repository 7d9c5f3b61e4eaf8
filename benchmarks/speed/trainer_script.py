"""BLIP and BLIP-2 captioning with transformers.Trainer and peft, as the public tutorials do it: the other side of the race.

    python benchmarks/speed/trainer_script.py JOB.json

JOB.json names the model folder, images with captions, strategy, batch size, epochs, precision and seed; a JSON object with
the loss and seconds of every step, seconds to caption, and peak memory goes to stdout's last line; see sides.py for `serve`.
The script depends on transformers and peft alone, and computes on the GPU if there is one. What tutorials forget and has to
be right for a comparison of losses is right here: the decoder starts from [DEC], padding carries no label, and every image is
decoded and resized anew in each epoch, as datasets' `with_transform` does.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from PIL import Image
from profiling import counted_kernels
from sides import device, device_steps, main, peak_memory_bytes
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode
from trainer_qwen import QwenCaptions, load_qwen
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    Blip2ForConditionalGeneration,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)  # fmt: skip

EVERYWHERE = r".*(qkv|projection|fc1|fc2|query|key|value|dense)"
DECODER = r"text_decoder\.bert\.encoder\..*(query|key|value|dense)"
HEAD = r"text_decoder.cls"
LANGUAGE_MODEL = r"language_model\..*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


class Captions(Dataset):
    """Images with captions, processed when they are asked for."""

    def __init__(self, pairs, processor):
        self.pairs, self.processor = pairs, processor

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, index):
        path, caption = self.pairs[index]
        image = Image.open(path).convert("RGB")
        return {"pixel_values": self.processor(image, return_tensors="pt")["pixel_values"][0], "caption": caption}


def load(job):
    """The model for a strategy, ready to be trained."""
    strategy, quantization = job["strategy"], None
    if strategy.startswith("qlora"):
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if job["bf16"] else torch.float32, llm_int8_skip_modules=[HEAD],
        )  # fmt: skip
    elif strategy == "lora-int8":
        quantization = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=[HEAD])
    model = BlipForConditionalGeneration.from_pretrained(job["model"], quantization_config=quantization, dtype=torch.float32)
    if strategy == "encoder-frozen":
        model.vision_model.requires_grad_(False)
    elif strategy == "decoder-frozen":
        model.text_decoder.requires_grad_(False)
    elif strategy != "full":
        if quantization is not None:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        targets = DECODER if strategy.endswith("decoder") else EVERYWHERE
        config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, exclude_modules=r".*(cls|pooler).*")
        model = get_peft_model(model, config)
    return model


def load_blip2(job):
    """BLIP-2 with LoRA on its language model."""
    model = Blip2ForConditionalGeneration.from_pretrained(job["model"], dtype=torch.float32)
    config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=LANGUAGE_MODEL)
    return get_peft_model(model, config)


class Remembering(Trainer):
    """The loss of every step is kept, and the operations of the first one if they are to be counted."""

    losses: list[torch.Tensor]
    count_flops = False
    flops = None

    def training_step(self, *words, **more):
        counter = FlopCounterMode(display=False) if self.count_flops and self.flops is None else None
        with counter or nullcontext():
            loss = super().training_step(*words, **more)
        if counter is not None:
            self.flops = counter.get_total_flops()
        self.losses.append(loss.detach())
        return loss


class Watch(TrainerCallback):
    """Seconds of every step, the waiting for its data included."""

    def __init__(self):
        self.seconds, self.start = [], 0.0

    def on_train_begin(self, *words, **more):
        self.start = time.perf_counter()

    def on_step_end(self, *words, **more):
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now


def run(job):
    """Train, caption, tell."""
    set_seed(job["seed"])
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    backbone = job.get("backbone", "blip")
    model = {"blip": load, "blip2": load_blip2, "qwen-vl": load_qwen}[backbone](job)
    if backbone == "qwen-vl":
        dataset = QwenCaptions(job, tokenizer)
    else:
        processor = BlipImageProcessorPil.from_pretrained(job["model"])
        dataset = Captions(job["train"], processor)

    def collate_blip2(rows):
        queries = [model.config.image_token_id] * model.config.num_query_tokens
        limit = job["max_text_tokens"]
        texts = [[*tokenizer(row["caption"])["input_ids"], tokenizer.eos_token_id][:limit] for row in rows]
        longest = max(map(len, texts))
        padding = [longest - len(ids) for ids in texts]
        start = len(queries) + 1  # of what is to be said, after the special token
        ids = torch.tensor([queries + ids + [tokenizer.pad_token_id] * n for ids, n in zip(texts, padding, strict=True)])
        mask = torch.tensor([[1] * (len(queries) + longest - n) + [0] * n for n in padding])
        labels = ids.masked_fill(mask == 0, -100)
        labels[:, :start] = -100
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, "labels": labels}

    def collate(rows):
        text = tokenizer([row["caption"] for row in rows], padding=True, return_tensors="pt", return_token_type_ids=False)
        text["input_ids"][:, 0] = tokenizer.bos_token_id  # [DEC] for [CLS], as generation starts
        labels = text["input_ids"].masked_fill(text["attention_mask"] == 0, -100)
        labels[:, 0] = -100
        pixels = torch.stack([row["pixel_values"] for row in rows])
        return {"pixel_values": pixels, "labels": labels, **text}

    on_cpu, workers = device().type == "cpu", job.get("workers", 0)
    arguments = TrainingArguments(
        output_dir=job["out"], per_device_train_batch_size=job["batch_size"], num_train_epochs=job["epochs"],
        learning_rate=job["learning_rate"], lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0,
        bf16=job["bf16"], optim="adamw_torch" if on_cpu else "adamw_torch_fused", save_strategy="no", logging_strategy="no",
        report_to="none", use_cpu=on_cpu, remove_unused_columns=False, label_names=["labels"], disable_tqdm=True,
        seed=job["seed"], data_seed=job["seed"], dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0,
    )  # fmt: skip
    collators = {"blip": collate, "blip2": collate_blip2, "qwen-vl": lambda rows: dataset.collate(rows)}
    watch = Watch()
    kernels, on_device = {}, []
    with counted_kernels(kernels) if job.get("profile") else device_steps(on_device):
        trainer = Remembering(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collators[backbone],
            callbacks=[watch],
        )
        trainer.losses = []
        trainer.count_flops = job.get("count_flops", False)
        trainer.train()
    seconds, captions = [0.0, 0.0], []
    for number in range(job.get("caption_times", 1)) if job["test"] else ():
        seconds[number], captions = caption(trainer.model, job, processor, tokenizer)
    return {
        "losses": [float(loss) for loss in trainer.losses], "step_seconds": watch.seconds, "device_step_seconds": on_device,
        "build_seconds": 0.0, "caption_seconds": seconds[0], "caption_again_seconds": seconds[1], "captions": captions,
        "peak_memory_bytes": peak_memory_bytes(), "kernels": kernels, "step_flops": trainer.flops,
    }  # fmt: skip


@torch.no_grad()
def caption(model, job, processor, tokenizer):
    """Seconds for, and captions of, the test images."""
    model.eval()
    where = model.device
    start, said = time.perf_counter(), []
    for first in range(0, len(job["test"]), job["batch_size"]):
        images = [Image.open(path).convert("RGB") for path in job["test"][first : first + job["batch_size"]]]
        pixels = processor(images, return_tensors="pt")["pixel_values"].to(where)
        with torch.autocast(where.type, torch.bfloat16, enabled=job["bf16"]):
            ids = model.generate(pixel_values=pixels, max_new_tokens=job["max_new_tokens"])
        said += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return time.perf_counter() - start, said


if __name__ == "__main__":
    main(run)
