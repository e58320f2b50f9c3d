"""The table of settings in docs/operate.md, made from the settings themselves.

.venv/bin/python -m tests.docs.settings_table
"""

from pydantic import SecretStr

from worker.settings import Settings
from worker.sources import PREFIX


def settings_table() -> str:
    lines = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = field.default
        shown = default.get_secret_value() if isinstance(default, SecretStr) else str(default)
        lines.append(f"| `{PREFIX}{name.upper()}` | `{shown}` | {field.description} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(settings_table())
