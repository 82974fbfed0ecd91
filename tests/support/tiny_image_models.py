"""Tiny image models with random weights, in the architectures of CLIP, SigLIP, ColPali and ColQwen2."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    ColPaliConfig,
    ColPaliForRetrieval,
    ColPaliProcessor,
    ColQwen2Config,
    ColQwen2ForRetrieval,
    ColQwen2Processor,
    PaliGemmaConfig,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    SiglipConfig,
    SiglipModel,
    SiglipProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

_SPECIAL = ["<pad>", "<eos>", "<bos>", "<image>", "<unk>", "<|im_start|>", "<|im_end|>", "<|vision_start|>"]
_SPECIAL += ["<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|endoftext|>"]
_WORDS = "word boat bread a red blue green chart picture of the page what shows".split()
_LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE = {**_LAYERS, "image_size": 32, "patch_size": 8}
_PIXELS = {"height": 32, "width": 32}


def tiny_clip(folder: Path, *, dim: int = 24) -> Path:
    tokenizer = _tokenizer(77, "<bos> $A <eos>")
    text = {**_LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "projection_dim": dim}
    config = CLIPConfig(text_config=text, vision_config={**_IMAGE, "projection_dim": dim}, projection_dim=dim)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_PIXELS)
    return _save(folder, CLIPModel, config, CLIPProcessor(image_processor=images, tokenizer=tokenizer))


def tiny_siglip(folder: Path) -> Path:
    tokenizer = _tokenizer(64, "$A <eos>")
    text = {**_LAYERS, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    text |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    config = SiglipConfig(text_config=text, vision_config=_IMAGE)
    images = SiglipImageProcessorPil(size=_PIXELS)
    return _save(folder, SiglipModel, config, SiglipProcessor(image_processor=images, tokenizer=tokenizer))


def tiny_colpali(folder: Path, *, side: int = 32, patch: int = 8, dim: int = 16) -> Path:
    tokenizer = _tokenizer(2048, "$A")
    images = SiglipImageProcessorPil(size={"height": side, "width": side})
    images.image_seq_length = (side // patch) ** 2
    processor = ColPaliProcessor(image_processor=images, tokenizer=tokenizer)  # adds 1,152 tokens
    text = {**_LAYERS, "model_type": "gemma", "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 2048}
    text |= {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    vision = {
        **_LAYERS,
        "image_size": side,
        "patch_size": patch,
        "model_type": "siglip_vision_model",
        "projection_dim": 32,
        "vision_use_head": False,
    }
    model = PaliGemmaConfig(
        vision_config=vision, text_config=text, projection_dim=32, hidden_size=32, image_token_index=3
    )
    return _save(folder, ColPaliForRetrieval, ColPaliConfig(vlm_config=model, embedding_dim=dim), processor)


def tiny_colqwen2(folder: Path) -> Path:
    tokenizer = _tokenizer(512, "$A")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "vision_start")}
    text = {**_LAYERS, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": len(tokenizer)}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
    text |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8}
    model = Qwen2VLConfig(
        text_config=text,
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2},
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    processor = ColQwen2Processor(image_processor=images, tokenizer=tokenizer)
    return _save(folder, ColQwen2ForRetrieval, ColQwen2Config(vlm_config=model, embedding_dim=16), processor)


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture of a few coloured shapes."""
    generator = torch.Generator().manual_seed(seed)
    numbers = iter(torch.rand(100, generator=generator).tolist())
    image = Image.new("RGB", size, tuple(int(255 * next(numbers)) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = next(numbers) * size[0] * 0.7, next(numbers) * size[1] * 0.7
        box = (left, top, left + next(numbers) * size[0] / 2, top + next(numbers) * size[1] / 2)
        draw.rectangle(box, fill=tuple(int(255 * next(numbers)) for _ in range(3)))
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _tokenizer(window: int, template: str) -> PreTrainedTokenizerFast:
    vocabulary = [*_SPECIAL, *_WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(token, n) for n, token in enumerate(_SPECIAL) if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **names,
        additional_special_tokens=[*_SPECIAL[3:4], *_SPECIAL[5:]],
        model_max_length=window,
    )


def _save(folder: Path, architecture: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    architecture(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
