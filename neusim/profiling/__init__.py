"""What `neusim/profile.py` is made of: measuring, fitting, and one module per kind of model.

| module | verb |
|---|---|
| `settings` | what was asked for, checked |
| `registry` | which module profiles a model of this name |
| `measure` | time points in interleaved passes; resume |
| `partial` | keep what was measured until the table is written |
| `fit` | latency models from points, and how good they are |
| `layers` | from two depths to the full one |
| `check_layers` | does by-layers agree with the whole model? |
| `calm` | which visits to believe on a busy machine |
| `opt`, `points`, `memory`, `engine`, `llm` | language models, on vLLM |
"""
