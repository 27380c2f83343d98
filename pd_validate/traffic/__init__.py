"""Talk to the service as its users do, and compare answers. No verdicts here."""
