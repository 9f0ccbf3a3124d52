"""What the README shows runs as written."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.strip().splitlines()[1])
def test_example(example: str) -> None:
    exec(compile(example, str(README), "exec"), {})
