"""Encoders in MLflow: one registered model, whose versions are challenger, champion and previous champion by alias.

What a model is made of is `exported`'s matter.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from geobacter_core.encoder.card import MODEL_CARD, description_of, with_evaluation
from geobacter_core.encoder.exported import load_graph, network_of, ready
from geobacter_core.encoder.network import EncoderNetwork, untrained_like
from geobacter_core.encoder.store import Store
from geobacter_core.encoder.version import MODEL_NAME, Encoder, EncoderVersion, version_of
from geobacter_core.errors import RegistryError

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS = "previous-champion"
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Registry(Store):
    """The registered encoders of an installation, and the store of the runs that trained them."""

    def version(self, alias_or_number: str) -> EncoderVersion | None:
        """The encoder of an alias or version number; None where there is none."""
        with self.trouble():
            try:
                if alias_or_number.isdigit():
                    found = self.client.get_model_version(MODEL_NAME, alias_or_number)
                else:
                    found = self.client.get_model_version_by_alias(MODEL_NAME, alias_or_number)
            except MlflowException as problem:
                if problem.error_code in _ABSENT:
                    return None
                raise
        return _version(found)

    def versions(self) -> list[EncoderVersion]:
        """Every registered encoder, the newest first; versions that are not ours are left out."""
        found: list[ModelVersion] = []
        token: str | None = None
        with self.trouble():
            while token is None or token:
                page = self.client.search_model_versions(f"name = '{MODEL_NAME}'", page_token=token)
                found += page
                token = page.token or ""
        ours = [each for each in found if "weights_digest" in each.tags]
        return sorted((_version(each) for each in ours), key=lambda version: -version.version)

    def aliases(self) -> dict[str, int]:
        """Alias to version number."""
        with self.trouble():
            try:
                found = self.client.get_registered_model(MODEL_NAME).aliases
            except MlflowException as problem:
                if problem.error_code in _ABSENT:
                    return {}
                raise
        return {alias: int(number) for alias, number in found.items()}

    @property
    def champion_alias(self) -> str:
        """The alias of this installation's style: `champion`, or `champion-<style>` where that is of another style.

        Who loads `champion` never gets an encoder that suddenly wants other channels.
        """
        first = self.version(CHAMPION)
        return CHAMPION if first is None or first.style == self.settings.style else f"{CHAMPION}-{self.settings.style}"

    def find_champion(self) -> EncoderVersion | None:
        """The champion of this installation's style, if there is one."""
        return self.version(self.champion_alias)

    def champion(self) -> EncoderVersion:
        """The champion of this installation's style.

        Raises:
            RegistryError: There is none yet.
        """
        found = self.find_champion()
        if found is None:
            raise RegistryError(
                f"MLflow at {self.shown_uri} has no {MODEL_NAME}@{self.champion_alias}. Materialise "
                "location_encoder; its first version that beats random weights becomes champion."
            )
        return found

    def promote(self, version: EncoderVersion) -> EncoderVersion | None:
        """Make a version the champion of its style; returns the one that was, which is now the previous champion.

        Raises:
            RegistryError: The version is of another style than the installation.
        """
        if version.style != self.settings.style:
            raise RegistryError(
                f"{version.name} takes windows of style '{version.style}', this installation's style is "
                f"'{self.settings.style}'. Set GEOBACTER_STYLE={version.style} to promote it."
            )
        alias = self.champion_alias
        before = self.version(alias)
        if before is not None and before.version == version.version:
            return None
        with self.trouble():
            if before is not None:
                previous = alias.replace(CHAMPION, PREVIOUS, 1)
                self.client.set_registered_model_alias(MODEL_NAME, previous, str(before.version))
            self.client.set_registered_model_alias(MODEL_NAME, alias, str(version.version))
        return before

    def load(self, version: EncoderVersion) -> Encoder:
        """Load an encoder from the registry, without pickle, onto the best device.

        Raises:
            RegistryError: Its artifacts cannot be had.
            EncoderError: What was loaded has other weights than the registry states.
        """
        return ready(version, self._network(version))

    def load_untrained(self, version: EncoderVersion) -> Encoder:
        """The same network with the random weights that it had before training, and its normalisation of the input."""
        return ready(version, untrained_like(self._network(version), version.seed))

    def _network(self, version: EncoderVersion) -> EncoderNetwork:
        self.make_current()
        with self.trouble():
            module = load_graph(f"models:/{MODEL_NAME}/{version.version}")
        return network_of(module, version)

    def add(self, run_id: str, folder: Path, tags: Mapping[str, str], card: str) -> EncoderVersion:
        """Register an exported encoder as the challenger.

        What a run has registered already is not registered again, so this may be tried until it succeeds.

        Args:
            run_id: The run that trained it.
            folder: What `export` wrote.
            tags: Of the version, by `tags_of`.
            card: The model card, Markdown.

        Raises:
            RegistryError: MLflow fails.
        """
        self.make_current()  # MLflow's own registry store asks the current tracking store for the logged model
        with self.trouble():
            found = self.client.search_model_versions(f"name = '{MODEL_NAME}' and run_id = '{run_id}'")
            created = found[0] if found else self._create(run_id, folder, tags, card)
            self.client.set_registered_model_alias(MODEL_NAME, CHALLENGER, str(created.version))
        return version_of(int(created.version), run_id, tags)

    def _create(self, run_id: str, folder: Path, tags: Mapping[str, str], card: str) -> ModelVersion:
        try:
            self.client.create_registered_model(MODEL_NAME)
        except MlflowException as problem:
            if problem.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        logged = self.client.create_logged_model(self.experiment_id, "encoder", run_id)
        model = Model.load(folder)
        model.run_id, model.model_id, model.model_uuid = run_id, logged.model_id, logged.model_id
        model.artifact_path = logged.artifact_location
        model.save(folder / "MLmodel")
        self.client.log_model_artifacts(logged.model_id, str(folder))
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])
        # With its tags from the first moment on: no version is ever half described.
        return self.client.create_model_version(
            MODEL_NAME,
            f"models:/{logged.model_id}",
            run_id,
            tags=dict(tags),
            description=description_of(card),
            model_id=logged.model_id,
        )

    def log_evaluation(
        self,
        version: EncoderVersion,
        region: str,
        metrics: Mapping[str, float],
        files: Sequence[Path],
        markdown: str,
    ) -> None:
        """Add the results of an evaluation to the run of a version, and to its card and description.

        Args:
            version: What was evaluated.
            region: Where; earlier results of the region are replaced.
            metrics: By names that say which region they are of.
            files: Tables and pictures, for `evaluation/<region>` among the run's artifacts.
            markdown: The results in short, for the card.

        Raises:
            RegistryError: MLflow fails.
        """
        self.make_current()
        run_id, now_ms = version.run_id, time.time_ns() // 1_000_000
        with self.trouble():
            self.client.log_batch(run_id, [Metric(name, value, now_ms, 0) for name, value in metrics.items()])
            for file in files:
                self.client.log_artifact(run_id, str(file), f"evaluation/{region}")
            card = f"# {version.name}\n\n"  # encoders of before there were cards
            if MODEL_CARD in {artifact.path for artifact in self.client.list_artifacts(run_id)}:
                card = mlflow.artifacts.load_text(f"runs:/{run_id}/{MODEL_CARD}")
            card = with_evaluation(card, region, markdown)
            self.client.log_text(run_id, card, MODEL_CARD)
            self.client.update_model_version(MODEL_NAME, str(version.version), description_of(card))


def _version(found: ModelVersion) -> EncoderVersion:
    return version_of(int(found.version), str(found.run_id), found.tags)
