"""Tiny models of real vision-language architectures, with random weights, a tokenizer of bytes and a processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaForCausalLM,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from ragfm.training.gguf_lora import ModelShape
from support.tiny_models import SIZES, SPECIAL, tiny_gguf

GEMMA_TOKENS = ["<start_of_image>", "<end_of_image>", "<image_soft_token>"]
VISION_TOKENS = ["<image>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", *GEMMA_TOKENS]
_MARK = "{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    f"{{% for c in m.content %}}{_MARK}{{% endfor %}}{{% endif %}}<|im_end|>\n{{% endfor %}}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TEMPLATE = TEMPLATE.replace("IMAGE", GEMMA_TOKENS[0])
LLAVA_TEMPLATE = TEMPLATE.replace("IMAGE", "<image>")
QWEN_TEMPLATE = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
IMAGE_SIZE, PATCH_SIZE = 32, 8
_GEMMA_IMAGE_TOKENS = 4
KINDS = ("llava", "qwen2_vl", "qwen2_5_vl", "gemma3")


def vocabulary() -> list[str]:
    """The special tokens, and a token for each byte."""
    return [*SPECIAL, *VISION_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]


def tiny_vision(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a model with its tokenizer and processor into a folder."""
    torch.manual_seed(seed)
    ids = {token: index for index, token in enumerate(vocabulary())}
    text: dict[str, Any] = {**SIZES, "vocab_size": len(ids), "max_position_embeddings": 2048}
    if kind == "llava":
        vision: dict[str, Any] = {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "projection_dim": 32,
            "initializer_range": 0.1,
        }
        options: dict[str, Any] = {"image_token_id": ids["<image>"], "text_config": {"model_type": "llama", **text}}
    elif kind == "gemma3":
        vision = {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
        }
        layers = ["sliding_attention", "full_attention"]
        gemma = {"model_type": "gemma3_text", **text, "head_dim": 16, "sliding_window": 16, "layer_types": layers}
        begin, end, image = (ids[token] for token in GEMMA_TOKENS)
        options = {
            "text_config": gemma,
            "mm_tokens_per_image": _GEMMA_IMAGE_TOKENS,
            "boi_token_index": begin,
            "eoi_token_index": end,
            "image_token_index": image,
            "image_token_id": image,
        }
    else:
        vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "in_channels": 3}
        if kind == "qwen2_vl":
            vision |= {"embed_dim": 32, "hidden_size": SIZES["hidden_size"], "mlp_ratio": 2}
        else:
            vision |= {"out_hidden_size": SIZES["hidden_size"], "intermediate_size": 48, "fullatt_block_indexes": [1]}
        rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
        options = {
            "text_config": {"model_type": f"{kind}_text", **text, "rope_parameters": rope},
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        }
    config = AutoConfig.for_model(kind, vision_config=vision, **options)
    model = AutoModelForImageTextToText.from_config(config)
    if kind == "gemma3":
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    model.generation_config.eos_token_id = SIZES["eos_token_id"]
    model.generation_config.pad_token_id = SIZES["pad_token_id"]
    model.save_pretrained(folder)

    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names: dict[str, Any] = {}
    if kind == "gemma3":
        names["extra_special_tokens"] = dict(zip(("boi_token", "eoi_token", "image_token"), GEMMA_TOKENS, strict=True))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        additional_special_tokens=[*SPECIAL[1:2], *VISION_TOKENS],
        **names,
    )
    fast.chat_template = {"llava": LLAVA_TEMPLATE, "gemma3": GEMMA_TEMPLATE}.get(kind, QWEN_TEMPLATE)
    processor: Any
    if kind == "llava":
        square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        processor = LlavaProcessor(
            CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=square),
            fast,
            patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=fast.chat_template,
        )
    elif kind == "gemma3":
        processor = Gemma3Processor(
            Gemma3ImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
            fast,
            chat_template=fast.chat_template,
            image_seq_length=_GEMMA_IMAGE_TOKENS,
        )
    else:
        image_processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 16)
        make = Qwen2VLProcessor if kind == "qwen2_vl" else Qwen2_5_VLProcessor
        processor = make(image_processor, fast, Qwen2VLVideoProcessor(), chat_template=fast.chat_template)
    processor.save_pretrained(folder)
    return folder


def tiny_llava_gguf(folder: Path, target: Path) -> tuple[Path, Path]:
    """Write a LLaVA of `tiny_vision` as `model.gguf` and `mmproj.gguf`, as llama.cpp's converter does, in float32."""
    target.mkdir(exist_ok=True)
    llava = AutoModelForImageTextToText.from_pretrained(folder)
    text = LlamaForCausalLM(llava.config.text_config)
    text.model.load_state_dict(llava.model.language_model.state_dict())
    text.lm_head.load_state_dict(llava.lm_head.state_dict())
    shape = ModelShape.from_config(text.config)
    model = tiny_gguf(text, target / "model.gguf", shape, extra_special=VISION_TOKENS, template=TEMPLATE)

    vision = llava.config.vision_config
    writer = gguf.GGUFWriter(target / "mmproj.gguf", "clip")
    writer.add_file_type(0)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_projection_dim(text.config.hidden_size)
    writer.add_vision_image_size(vision.image_size)
    writer.add_vision_patch_size(vision.patch_size)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    processor = CLIPImageProcessor()
    writer.add_vision_image_mean(list(processor.image_mean))
    writer.add_vision_image_std(list(processor.image_std))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, vision.num_hidden_layers)
    for name, tensor in llava.state_dict().items():
        original = name.replace("model.vision_tower", "vision_tower.vision_model").removeprefix("model.")
        if "post_layernorm" in name or not original.startswith(("vision_tower", "multi_modal")):
            continue  # the features are those of the last but one layer
        mapped = names.get_name(original, try_suffixes=(".weight", ".bias"))
        mapped = mapped.replace("mm.1.", "mm.0.")  # linear layers 0 and 2, with the activation between them
        writer.add_tensor(mapped, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, target / "mmproj.gguf"


def tiny_qwen_gguf(folder: Path, target: Path) -> tuple[Path, Path]:
    """Write a Qwen2-VL of `tiny_vision` as `model.gguf` and `mmproj.gguf`, as llama.cpp's converter does."""
    target.mkdir(exist_ok=True)
    qwen = AutoModelForImageTextToText.from_pretrained(folder)
    config, vision = qwen.config.text_config, qwen.config.vision_config
    writer = gguf.GGUFWriter(target / "model.gguf", "qwen2vl")
    writer.add_file_type(0)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_sections([*config.rope_parameters["mrope_section"], 0])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary())
    special = len(SPECIAL) + len(VISION_TOKENS)
    writer.add_token_types([3] * special + [1] * (len(vocabulary()) - special))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(SIZES["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    _add_tensors(writer, qwen, gguf.MODEL_ARCH.QWEN2VL, config.num_hidden_layers)

    projector = gguf.GGUFWriter(target / "mmproj.gguf", "clip")
    projector.add_file_type(0)
    projector.add_clip_has_vision_encoder(True)
    projector.add_clip_projector_type("qwen2vl_merger")
    projector.add_vision_projection_dim(config.hidden_size)
    projector.add_vision_image_size(560)
    projector.add_vision_min_pixels(56 * 56)
    projector.add_vision_max_pixels(28 * 28 * 16)
    projector.add_vision_patch_size(vision.patch_size)
    projector.add_vision_embedding_length(vision.embed_dim)
    projector.add_vision_feed_forward_length(vision.embed_dim * vision.mlp_ratio)
    projector.add_vision_block_count(vision.depth)
    projector.add_vision_head_count(vision.num_heads)
    projector.add_vision_attention_layernorm_eps(1e-6)
    processor = Qwen2VLImageProcessor()
    projector.add_vision_image_mean(list(processor.image_mean))
    projector.add_vision_image_std(list(processor.image_std))
    _add_tensors(projector, qwen, gguf.MODEL_ARCH.MMPROJ, vision.depth + 1)
    return target / "model.gguf", target / "mmproj.gguf"


def _add_tensors(writer: gguf.GGUFWriter, model: Any, architecture: gguf.MODEL_ARCH, layers: int) -> None:
    """Write the tensors of a Qwen2-VL that an architecture has, with llama.cpp's names, and the file."""
    names = gguf.get_tensor_name_map(architecture, layers)
    for name, tensor in model.state_dict().items():
        is_vision = name.startswith("model.visual.")
        if is_vision != (architecture == gguf.MODEL_ARCH.MMPROJ):
            continue
        values = tensor.float().numpy()
        original = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        pairs = [(original, values)]
        if ".qkv." in original:
            thirds = values.reshape(3, -1, *values.shape[1:])
            pairs = [(original.replace("qkv", part), third) for part, third in zip("qkv", thirds, strict=True)]
        for original_name, value in pairs:
            mapped = names.get_name(original_name, try_suffixes=(".weight", ".bias"))
            assert mapped, original_name
            if value.ndim == 5:  # one convolution for each of two frames
                writer.add_tensor(mapped, value[:, :, 0].copy())
                writer.add_tensor(f"{mapped}.1", value[:, :, 1].copy())
            else:
                writer.add_tensor(mapped, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
