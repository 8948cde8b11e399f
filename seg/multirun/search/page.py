"""search.html: plots of a search in a single file that works offline.

The plots are Optuna's, except for the importances and the learning curves, which mark the pruned trials.
"""

from collections.abc import Callable

import jinja2
import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from seg.multirun.search.space import SearchDimension, short_names
from seg.multirun.search.study import objective_direction

MIN_IMPORTANCE_TRIALS = 10  # trials needed for importances
MAX_FRONT_OBJECTIVES = 3  # maximal number of objectives in one Pareto plot
BLUE, GREY, RED = "#1f5fa8", "#b8bcc4", "#c81027"
PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 0; }
p { margin: .3rem 0; color: #4a5364; } .facts { font-size: 1.05rem; color: #1c2330; }
code { display: block; background: #f2f4f7; padding: .6rem .8rem; border-radius: 6px; overflow-x: auto; white-space: pre; }
</style>
<script>{{ script | safe }}</script>
</head>
<body>
<h1>{{ title }}</h1>
<p class="facts">{{ facts }}</p>
<code>{{ command }}</code>
{% for plot in plots %}
<h2>{{ plot.title }}</h2>
<p>{{ plot.text }}</p>
{{ plot.html | safe }}
{% endfor %}
</body>
</html>
"""


def render_search_page(
    study: optuna.Study, axes: list[SearchDimension], objectives: list[str], command: str
) -> str:
    """Render the page of a study with at least one completed trial.

    Args:
        study: to plot.
        axes: searched options.
        objectives: names.
        command: that trains the best trial again.

    Returns:
        HTML.
    """
    # Each plot as HTML without plotly's script
    plots = [
        {"title": title, "text": text, "html": figure_html(figure)}
        for title, text, figure in study_figures(study, axes, objectives)
    ]
    template = jinja2.Environment(autoescape=True).from_string(PAGE_TEMPLATE)
    return template.render(
        title=study.study_name, facts=describe_study(study, objectives), command=command, plots=plots,
        script=get_plotlyjs(),
    )  # fmt: skip


def figure_html(figure: go.Figure) -> str:
    """Convert a plot to HTML, without plotly's script, which the page contains once."""
    figure.update_layout(
        title=None, template="plotly_white", height=figure.layout.height or 460,
        margin={"l": 70, "r": 30, "t": 40, "b": 60},
    )  # fmt: skip
    figure.update_xaxes(exponentformat="power").update_yaxes(automargin=True)
    figure.update_traces(
        labelfont_size=14, tickfont={"size": 12, "color": "black"}, selector={"type": "parcoords"}
    )
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})


def describe_study(study: optuna.Study, objectives: list[str]) -> str:
    """Describe a study in one line: number of trials by outcome, and the best value."""
    # Number of trials of each outcome that occurs
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    named = {
        "completed": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    outcomes = ", ".join(
        f"{states.count(state)} {name}" for name, state in named.items() if state in states
    )
    if len(objectives) > 1:
        return f"{len(states)} trials: {outcomes}; {len(study.best_trials)} on the Pareto front"
    best = f"best {objectives[0]} {study.best_value:.4f}, trial {study.best_trial.number}"
    return f"{len(states)} trials: {outcomes}; {best}"


def option_importances(study: optuna.Study) -> dict[str, float]:
    """Compute the importance of each option: its share of the variance of the first objective, by fANOVA.

    Hutter et al., ICML 2014. Optuna's default, PED-ANOVA, attributes much to a continuous option even if a
    categorical one alone determines the score (docs/tune.md, benchmarks/importances.py).

    Returns:
        Option -> share in 0..1; empty with fewer than ``MIN_IMPORTANCE_TRIALS`` trials, or a single option.
    """
    # Too few trials, or a single option, give no meaningful shares
    whole = include_pruned(study)
    if len(whole.trials) < MIN_IMPORTANCE_TRIALS or len(whole.trials[0].params) < 2:
        return {}
    shares = get_param_importances(
        whole, evaluator=FanovaImportanceEvaluator(seed=0), target=value_at(0)
    )
    return {name: float(share) for name, share in shares.items()}


def include_pruned(study: optuna.Study) -> optuna.Study:
    """Copy the study in memory with pruned trials counted by their last score, so that importances include them."""
    whole = optuna.create_study(directions=study.directions, study_name=study.study_name)
    for trial in study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)):
        if trial.values:
            trial.state = TrialState.COMPLETE
            whole.add_trial(trial)
    return whole


def study_figures(
    study: optuna.Study, axes: list[SearchDimension], objectives: list[str]
) -> list[tuple[str, str, go.Figure]]:
    """Build the plots of a study, the most important first.

    Returns:
        Title, explanation and figure of each.
    """
    # Pareto front of several objectives.
    several, whole = len(objectives) > 1, include_pruned(study)
    plots = []
    if several and len(objectives) <= MAX_FRONT_OBJECTIVES:
        front = visualization.plot_pareto_front(study, target_names=objectives)
        text = (
            "Each point is a trial; no trial is better in all objectives than those shown in red."
        )
        plots.append(("Objectives against each other", text, front))
    # History, slices and parallel coordinates of each objective.
    for position, objective in enumerate(objectives):
        target = value_at(position) if several else None
        better = "higher" if objective_direction(objective) == "maximize" else "lower"
        suffix = f": {objective}" if several else ""
        if not several:
            history = visualization.plot_optimization_history(study, target_name=objective)
            text = f"{objective} of each completed trial, {better} is better; the line is the best so far."
            plots.append(("History", text, history))
        slices = visualization.plot_slice(whole, target=target, target_name=objective)
        text = "Each point is a trial, a pruned one with its last score; darker points are later. Points at the same value of an option differ by chance and by the other options."
        plots.append((f"Each option by itself{suffix}", text, slices))
        if len(axes) > 1:
            lines = visualization.plot_parallel_coordinate(
                whole, target=target, target_name=objective
            )
            text = "Each line is a trial; drag along an axis to select some."
            plots.append((f"Options together{suffix}", text, lines))
    # Importances come second, learning curves last.
    if shares := option_importances(study):
        text = f"Share of each option by itself in the variance of {objectives[0]} (fANOVA); unreliable with few trials."
        plots.insert(1, ("Importance", text, importance_bars(shares, axes)))
    if any(t.intermediate_values for t in study.get_trials(deepcopy=False)):
        text = f"{objectives[0]} after each epoch: pruned trials in grey, the best trial in red."
        plots.append(("Learning curves", text, learning_curves(study, objectives[0])))
    return plots


def value_at(position: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: (trial.values or [])[position]


def importance_bars(shares: dict[str, float], axes: list[SearchDimension]) -> go.Figure:
    """Draw a bar per option, the longest on top."""
    # Plotly draws bars from the bottom up
    short = short_names(axes)
    names = [short[name] for name in reversed(shares)]
    values = [100 * share for share in reversed(shares.values())]
    bar = go.Bar(x=values, y=names, orientation="h", marker_color=BLUE, texttemplate="%{x:.0f} %")
    figure = go.Figure(bar, {"height": 130 + 50 * len(names)})
    return figure.update_xaxes(title="share, %", range=[0, 105])


def learning_curves(study: optuna.Study, objective: str) -> go.Figure:
    """Draw a line per trial: its score after each epoch."""
    # Pruned trials first and the best last, so that it is drawn on top
    best = study.best_trial.number
    figure = go.Figure()
    order = {TrialState.PRUNED: 0, TrialState.COMPLETE: 1}
    trials = [t for t in study.get_trials(deepcopy=False) if t.state in order]
    for trial in sorted(trials, key=lambda t: (t.number == best, order[t.state])):
        pruned = trial.state == TrialState.PRUNED
        color = RED if trial.number == best else GREY if pruned else BLUE
        steps = sorted(trial.intermediate_values)
        figure.add_scatter(
            x=steps, y=[trial.intermediate_values[step] for step in steps], mode="lines+markers",
            line={"color": color, "width": 3 if trial.number == best else 1.5, "dash": "dot" if pruned else "solid"},
            marker={"size": 5}, name=f"trial {trial.number}", showlegend=False,
        )  # fmt: skip
    return figure.update_xaxes(title="epoch").update_yaxes(title=objective)
