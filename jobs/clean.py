"""List or remove what an artifact no longer needs: ``python -m jobs.clean runs/digits``."""

from easycore_ray.cli import run, show
from easycore_ray.config.stages import CleanConfig
from easycore_ray.inspection.clean import Leftover, clean
from easycore_ray.reporting.inspect_text import bytes_text
from easycore_ray.storage import paths


def main(config: CleanConfig) -> list[Leftover]:
    """Clean, and print each file with its size and reason."""
    found = clean(config)
    root = paths.absolute(config.path)
    lines: list[str] = []
    for reason in sorted({leftover.reason for leftover in found}):
        lines.append(f"{reason}:")
        mine = [each for each in found if each.reason == reason]
        lines += [f"  {bytes_text(each.size):>10}  {each.path[len(root) + 1 :]}" for each in mine]
    total = f"{len(found):,} file{'' if len(found) == 1 else 's'}, {bytes_text(sum(each.size for each in found))}"
    if not found:
        lines.append(f"nothing to remove in {root}")
    elif config.yes:
        lines.append(f"removed {total} from {root}")
    else:
        lines.append(f"would remove {total} from {root}; pass --yes to do it")
    show("\n".join(lines))
    return found


if __name__ == "__main__":
    run(CleanConfig, main)
