"""What every experiment shares; a new kind of model brings a `program.Kind`, and nothing else.

    def load(options, table, path, scope) -> Bench: ...      # loads the model; see `runner.Bench`

    KIND = Kind(name="images", add_arguments=…, options=…, scope=…, header=…, load=load, …)

    if __name__ == "__main__":
        sys.exit(program.main(KIND))

A `Bench` makes the requests of a setting (`neustream.driver.Ask`, their arrivals counted from its start) and a
`neustream.driver.Driver` for it. The frame does the rest: one-line errors with exit code 2, the latency table (found,
or measured on first use), the run's folder, the sweep, the client process, the serving loop, Ctrl-C, dead clients,
goodput, `requests.jsonl`, `steps.jsonl`, `summary.json`, `step_prediction*.log`, the progress bar, the printed table.

Options are frozen: a kind's subclass of `options.Options` is made once, by `Kind.options`, from the command line.
Nothing here imports torch, vllm or diffusers, so bad input is refused at once.
"""
