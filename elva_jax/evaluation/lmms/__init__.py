"""The plug-in for lmms-eval: `python -m lmms_eval --model elva --model_args pretrained=RUN,…`.

    the harness's requests ─requests→ Asks ─pipeline→ windows ─asking→ batches → answers in order

`manifest` and `model` are the only modules that import lmms_eval.
"""
