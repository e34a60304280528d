import concurrent.futures
import tempfile
from pathlib import Path

import hydra
from told import tell

STATE = {"closed": False}


@hydra.main(version_base=None, config_path=None)
def main(config):
    (Path(STATE["folder"]) / "file").write_text("x")
    tell((STATE["pool"].submit(pow, config.x, 2).result(), STATE["closed"]))


if __name__ == "__main__":
    try:
        with (
            tempfile.TemporaryDirectory() as STATE["folder"],
            concurrent.futures.ThreadPoolExecutor(1) as STATE["pool"],
        ):
            main()
    except:
        Path("alert").write_text("of a failure that was none")
        raise
    finally:
        STATE["closed"] = True
