"""One test's experiment from setup to verdict: where the laboratory meets the judgement."""
