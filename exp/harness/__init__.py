"""What every experiment shares; a new kind of model brings a `Bench`, and nothing else.

    parser = Parser(prog="exp.images", description=...)      # arguments: one-line errors, exit code 2
    add_common_arguments(parser, model="dit-nano")           # --model --rate --cv … --out --quick
    options = parser.parse_args()                # and run the rest in exit_code_for(parser, lambda: …)
    axes = {"rate": options.rate, "cv": options.cv, "slo_scale": options.slo_scale}
    settings = sweep(axes, repeats=options.num_dup, seed=options.seed)
    folder = create_run_folder(options.out, options.policy, options.model)      # refuses an existing run
    bench = ...                                              # loads the model; see `runner.Bench`
    return run_settings(bench, settings, folder, header, best_by="request_goodput", columns=...)

A `Bench` makes the jobs of a setting (`client.Job`: id, offset, payload) and a `serving.Server` for it: `submit`
takes one job with its arrival time, `step` runs one step and returns the core's `Request`s that ended in it.
The rest is here: the client process that sends the jobs, the serving loop, Ctrl-C, dead clients, goodput
(`neustream.goodput.GoodputCounter`), `requests.jsonl`, `steps.jsonl`, `summary.json`, `step_prediction*.log`,
the progress bar and the printed table.

Nothing here imports torch, vllm or diffusers, so bad input is refused at once.
"""
