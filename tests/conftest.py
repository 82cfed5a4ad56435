"""Counts the flag combinations that were tried, and prints them at the end of the run."""


def pytest_terminal_summary(terminalreporter):
    tried = wrong = refused = 0
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            properties = dict(getattr(report, "user_properties", ()))
            if "combination" in properties:
                tried += 1
                wrong += outcome == "failed"
            refused += properties.get("refused", 0)
    if tried:
        terminalreporter.write_line(
            f"flag combinations: {tried + refused} tried, {refused} refused ({refused / (tried + refused):.0%}), {wrong} wrong"
        )
