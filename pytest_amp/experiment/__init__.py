"""Run one test's experiment from setup to verdict: measure with lab/, and judge with judge/."""
