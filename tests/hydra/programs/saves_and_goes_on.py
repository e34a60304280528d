import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from told import tell

from sweeps.hydra_apps.job_progress import report_progress


@hydra.main(version_base=None, config_path=None)
def main(config):
    saved = Path(HydraConfig.get().runtime.output_dir) / "saved"
    step = int(saved.read_text()) if saved.exists() else 0
    while step < 5:
        step += 1
        saved.write_text(str(step))
        if report_progress(step, 5, checkpoint_step=step) and step < 5:
            sys.exit(75)
    tell((config.x, step))


if __name__ == "__main__":
    main()
