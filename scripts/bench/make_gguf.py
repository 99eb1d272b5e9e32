"""Writes model.gguf into a folder: a llama of random weights, about 200 MiB."""

import os
import sys

import gguf
import numpy

WIDTH, HEADS, INNER, BLOCKS, WORDS = 768, 12, 2048, 6, 4096

chance = numpy.random.default_rng(1)


def random(*shape):
    return (chance.standard_normal(shape, dtype=numpy.float32) * 0.02)


writer = gguf.GGUFWriter(os.path.join(sys.argv[1], "model.gguf"), "llama")
writer.add_context_length(256)
writer.add_embedding_length(WIDTH)
writer.add_block_count(BLOCKS)
writer.add_feed_forward_length(INNER)
writer.add_head_count(HEADS)
writer.add_head_count_kv(HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(WIDTH // HEADS)
writer.add_vocab_size(WORDS)
words = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
words += [f"w{at}" for at in range(WORDS - len(words))]
kinds = [2, 3, 3] + [6] * 256 + [1] * (WORDS - 259)
writer.add_tokenizer_model("llama")
writer.add_token_list(words)
writer.add_token_scores([0.0] * WORDS)
writer.add_token_types(kinds)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_unk_token_id(0)
writer.add_tensor("token_embd.weight", random(WORDS, WIDTH))
writer.add_tensor("output_norm.weight", numpy.ones(WIDTH, dtype=numpy.float32))
writer.add_tensor("output.weight", random(WORDS, WIDTH))
for at in range(BLOCKS):
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{at}.{name}.weight", numpy.ones(WIDTH, dtype=numpy.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.{at}.{name}.weight", random(WIDTH, WIDTH))
    for name in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.{at}.{name}.weight", random(INNER, WIDTH))
    writer.add_tensor(f"blk.{at}.ffn_down.weight", random(WIDTH, INNER))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
