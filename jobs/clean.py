"""List or remove what an artifact no longer needs: ``python -m jobs.clean runs/digits``."""

from easycore_ray import paths
from easycore_ray.cleaning import Leftover, clean
from easycore_ray.config import CleanConfig
from easycore_ray.drawing.facts import bytes_text
from jobs.command import run


def main(config: CleanConfig) -> list[Leftover]:
    """Clean, and print each file with its size and reason."""
    found = clean(config)
    root = paths.absolute(config.path)
    reason = ""
    for leftover in sorted(found, key=lambda leftover: (leftover.reason, leftover.path)):
        if leftover.reason != reason:
            reason = leftover.reason
            print(f"{reason}:")
        print(f"  {bytes_text(leftover.size):>10}  {leftover.path[len(root) + 1 :]}")
    total = f"{len(found):,} file{'' if len(found) == 1 else 's'}, {bytes_text(sum(each.size for each in found))}"
    if not found:
        print(f"nothing to remove in {root}")
    elif config.yes:
        print(f"removed {total} from {root}")
    else:
        print(f"would remove {total} from {root}; pass --yes to do it")
    return found


if __name__ == "__main__":
    run(CleanConfig, main)
