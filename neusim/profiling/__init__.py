"""What `neusim/profile.py` is made of: measuring, fitting, and one module per kind of model.

| module | verb |
|---|---|
| `settings` | what was asked for, checked |
| `registry` | which module profiles a model of this name |
| `measure` | time points in interleaved passes; resume |
| `visits` | keep what was measured until the table is written; which visits to believe on a busy machine |
| `fit` | latency models from points, and how good they are |
| `depth` | from two depths to the full one |
| `check_layers` | does by-layers agree with the whole model? |
| `grid`, `memory`, `vllm_timer`, `llm` | language models, on vLLM |
| `diffusion` | image pipelines |
"""
