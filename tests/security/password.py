"""A user of the broker, and a password that is easy to find wherever it is written."""

# Split, so that no file contains what looks like a credential.
CANARY = "-".join(["S3CR3T", "canary"])
USER = "projection"


def with_password(url: str, user: str) -> str:
    return url.replace("guest:guest", f"{user}:{CANARY}")
