"""One module per verb of the command line: wiring only. Each has `run(config, build, call) -> record`."""
