"""Answers: prefill by layer blocks, KV cache, decoding, scoring, chat, hidden states."""
