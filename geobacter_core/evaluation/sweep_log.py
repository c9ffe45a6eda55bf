"""A sweep in MLflow: one run, and within it one for each trial."""

from collections.abc import Sequence

from geobacter_core.encoder.store import Store
from geobacter_core.evaluation.sweep import SweepPlan, Trial, table


class SweepLog:
    """Logs a sweep as it goes. A sweep that goes on where it was killed is another run, with all of its trials."""

    def __init__(self, store: Store, plan: SweepPlan, tags: dict[str, str]) -> None:
        """Begin the sweep's run.

        Raises:
            RegistryError: MLflow fails.
        """
        self._store = store
        with store.trouble():
            run = store.client.create_run(store.experiment_id, tags={**tags, "mlflow.runName": "sweep"})
            self.run_id = str(run.info.run_id)
            store.client.log_dict(self.run_id, plan.model_dump(), "plan.json")

    def add(self, trial: Trial) -> None:
        """Log a trial: what was changed as parameters, every score as a metric."""
        client = self._store.client
        with self._store.trouble():
            tags = {"mlflow.parentRunId": self.run_id, "mlflow.runName": f"{trial.name}, seed {trial.seed}"}
            run_id = client.create_run(self._store.experiment_id, tags=tags).info.run_id
            for name, value in {**trial.changes, "seed": trial.seed}.items():
                client.log_param(run_id, name, value)
            for key, score in {**trial.figures, **trial.scores}.items():
                client.log_metric(run_id, _metric_name(key), score)
            client.set_terminated(run_id)

    def finish(self, trials: Sequence[Trial]) -> None:
        """Log the table, and end the sweep's run."""
        with self._store.trouble():
            self._store.client.log_text(self.run_id, table(trials), "sweep.md")
            self._store.client.set_terminated(self.run_id)


def _metric_name(key: str) -> str:
    """MLflow allows letters, digits and a few signs in a name."""
    return "".join(letter if letter.isalnum() or letter in "/_-. " else "_" for letter in key)
