"""What people choose by: losses of choices under Rao and Kupper's model, and the fit of a few named weights to them.

Pure tensor functions. The fit is a maximum a posteriori estimate by Newton's method, with its covariance (Laplace): a dozen weights
and tens of thousands of choices take milliseconds, so it is done anew from all choices and forgets none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from trainer.math.losses import rao_kupper_logprobs

FIRST, TIE, SECOND, RATED = 1, 0, -1, 2
START_NU = 3.0


@dataclass(frozen=True)
class Choices:
    """Rows of choices. features: (rows, features), of the first answer less the second, or of the one answer that was rated.

    kinds: FIRST, SECOND, TIE or RATED; targets: of rated rows, 0 (worst) to 1; margins: what the preferred answer must lead by;
    weights: >= 0; all (rows,).
    """

    features: Tensor
    kinds: Tensor
    targets: Tensor
    margins: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.kinds)

    def pick(self, index: Tensor) -> Choices:
        """The rows of these numbers."""
        return Choices(
            self.features[index], self.kinds[index], self.targets[index], self.margins[index], self.weights[index]
        )

    def to(self, dtype: torch.dtype) -> Choices:
        floats = ("features", "targets", "margins", "weights")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in floats})

    def to_device(self, device: torch.device) -> Choices:
        return replace(self, **{each.name: getattr(self, each.name).to(device) for each in fields(self)})


@dataclass(frozen=True)
class ChoiceFit:
    """weights and covariance: (features,) and (features, features). first_place: the pull of the place shown first."""

    weights: Tensor
    covariance: Tensor
    first_place: float = 0.0
    log_nu: float = math.log(START_NU)
    rated_intercept: float = 0.0  # the score of an answer that is rated as its person's average

    @property
    def deviations(self) -> list[float]:
        """How unsure each weight is: the posterior's standard deviations, (features,)."""
        return [float(each) for each in self.covariance.diagonal().clamp(min=0).sqrt()]


@dataclass(frozen=True)
class Prior:
    """Standard deviations of what is fitted, around 0. nu_shape: of the Gamma of log nu; the larger, the closer nu stays to 3.

    weight: of all features alike, or one for each.
    """

    weight: float | Sequence[float] = 1.5
    first_place: float = 0.5
    rated_intercept: float = 1.0
    nu_shape: float = 5.0


def choice_losses(
    differences: Tensor,
    rows: Choices,
    *,
    first_place: Tensor,
    log_nu: Tensor,
    rated_intercept: Tensor,
    smoothing: float,
) -> Tensor:
    """Negative log-likelihood of each choice, unweighted. differences: (rows,) or (rows, draws), as is what returns.

    The label of a decisive choice is wrong with chance `smoothing`. A margin m asks for a lead of m: -log P(win | d - m).
    """
    shape = (-1, *[1] * (differences.dim() - 1))
    kinds, margins = rows.kinds.view(shape), rows.margins.view(shape)
    sign = torch.where(kinds == RATED, 0, kinds).to(differences.dtype)
    placed = differences + first_place
    win, lose, _ = rao_kupper_logprobs(sign * placed - margins, log_nu)
    _, _, tie = rao_kupper_logprobs(placed, log_nu)
    decisive = (1 - smoothing) * win + smoothing * lose
    targets = rows.targets.view(shape).expand_as(differences)
    rated = binary_cross_entropy_with_logits(differences - rated_intercept, targets, reduction="none")
    return torch.where(kinds == RATED, rated, -torch.where(kinds == TIE, tie, decisive))


def win_probabilities(differences: Tensor, log_nu: float) -> Tensor:
    """P(first | one was preferred), place left out."""
    win, lose, _ = rao_kupper_logprobs(differences, log_nu)
    return torch.sigmoid(win - lose)


def fit_choices(rows: Choices, prior: Prior | None = None, *, smoothing: float = 0.1, max_steps: int = 50) -> ChoiceFit:
    """Weights, place, tie width and intercept that explain the rows best under the prior, which is what no rows give back.

    Weights of rows are taken as they are: their sum is how many choices there are. The objective is convex, so where it starts
    plays no part.
    """
    objective = _Objective(rows.to(torch.float64), prior or Prior(), smoothing)
    num_features = rows.features.shape[1]
    theta = torch.zeros(num_features + 3, dtype=torch.float64)
    theta[-1] = math.log(START_NU)
    value, gradient, hessian = objective.measure(theta)
    for _ in range(max_steps):
        step, scale = torch.linalg.solve(hessian, gradient), 1.0
        while scale > 1e-4 and not objective.measure_value(theta - scale * step) < value:
            scale /= 2
        moved = theta - scale * step
        before, (value, gradient, hessian) = value, objective.measure(moved)
        if not value < before:
            break
        theta = moved
        if before - value < 1e-10 * (1 + abs(value)):
            break
    covariance = torch.linalg.inv(objective.measure(theta)[2])[:num_features, :num_features]
    return ChoiceFit(
        weights=theta[:num_features].float(),
        covariance=covariance.float(),
        first_place=theta[-3].item(),
        rated_intercept=theta[-2].item(),
        log_nu=theta[-1].item(),
    )


class _Objective:
    """The negative log posterior of theta = (weights, first place, rated intercept, log nu), with its derivatives.

    The prior of log nu is a Gamma with its mode at log 3: it keeps log nu above 0 and the whole convex.
    """

    def __init__(self, rows: Choices, prior: Prior, smoothing: float) -> None:
        self._rows, self._smoothing = rows, smoothing
        is_rated = (rows.kinds == RATED).double()
        self._design = torch.cat([rows.features, (1 - is_rated)[:, None], -is_rated[:, None]], 1)
        each = [prior.weight] * rows.features.shape[1] if isinstance(prior.weight, int | float) else list(prior.weight)
        spreads = [*each, prior.first_place, prior.rated_intercept]
        self._precision = torch.tensor(spreads, dtype=torch.float64) ** -2
        self._nu_shape, self._nu_rate = prior.nu_shape - 1, (prior.nu_shape - 1) / math.log(START_NU)

    def measure_value(self, theta: Tensor) -> float:
        linear, log_nu = theta[:-1], theta[-1]
        if log_nu <= 0:
            return math.inf
        zero = theta.new_zeros(())
        losses = choice_losses(
            self._design @ linear,
            self._rows,
            first_place=zero,
            log_nu=log_nu,
            rated_intercept=zero,
            smoothing=self._smoothing,
        )
        penalty = 0.5 * (self._precision * linear**2).sum() + self._nu_rate * log_nu - self._nu_shape * log_nu.log()
        return float((self._rows.weights * losses).sum() + penalty)

    def measure(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """Value, gradient and Hessian."""
        linear, log_nu = theta[:-1], theta[-1]
        by_u, by_nu, by_uu, by_unu, by_nunu = self._differentiate(self._design @ linear, log_nu)
        weighted = self._design * self._rows.weights[:, None]
        gradient = torch.cat([weighted.T @ by_u + self._precision * linear, (self._rows.weights @ by_nu)[None]])
        gradient[-1] += self._nu_rate - self._nu_shape / log_nu
        hessian = theta.new_zeros(len(theta), len(theta))
        hessian[:-1, :-1] = (weighted * by_uu[:, None]).T @ self._design + self._precision.diag()
        hessian[-1, :-1] = hessian[:-1, -1] = weighted.T @ by_unu
        hessian[-1, -1] = self._rows.weights @ by_nunu + self._nu_shape / log_nu**2
        return self.measure_value(theta), gradient, hessian

    def _differentiate(self, u: Tensor, log_nu: Tensor) -> tuple[Tensor, ...]:
        """Derivatives of each loss by u, log nu, u u, u log nu, log nu log nu.

        A decisive or a tied loss is a sum of -c log sigmoid(z), z = +-(s u - m) - log nu, with c (1 - smoothing, smoothing) or (1, 1).
        """
        kinds, smoothing = self._rows.kinds, self._smoothing
        is_rated, is_tie = kinds == RATED, kinds == TIE
        sign = torch.where(is_rated | is_tie, 1, kinds).double()
        led = sign * u - torch.where(is_tie, 0.0, self._rows.margins)
        ahead, behind = torch.sigmoid(led - log_nu), torch.sigmoid(-led - log_nu)
        c_ahead, c_behind = torch.where(is_tie, 1.0, 1 - smoothing), torch.where(is_tie, 1.0, smoothing)
        up, down = c_ahead * (1 - ahead), c_behind * (1 - behind)
        bent_up, bent_down = up * ahead, down * behind
        twice = torch.exp(2 * log_nu)
        by_nu = up + down - is_tie * 2 * twice / (twice - 1)
        by_nunu = bent_up + bent_down + is_tie * 4 * twice / (twice - 1) ** 2
        chance = torch.sigmoid(u)
        return (
            torch.where(is_rated, chance - self._rows.targets, sign * (down - up)),
            torch.where(is_rated, 0.0, by_nu),
            torch.where(is_rated, chance * (1 - chance), bent_up + bent_down),
            torch.where(is_rated, 0.0, sign * (bent_down - bent_up)),
            torch.where(is_rated, 0.0, by_nunu),
        )
