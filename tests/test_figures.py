"""Every figure has its yardstick, its count of trials and words that stand for it; names cannot break it."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from synthetic import fill, filled, make_study
from toys import GRAMMAR, REQUESTS, STORIES

from lowres.analysis import collect, figures, plots, tables
from lowres.methods import show
from lowres.runs import records
from lowres.runs.study import read_study


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return collect.collect(*filled(tmp_path_factory.mktemp("figures"), shots=(2, 16), seeds=range(3), models=("facebook/opt-125m", "a/$x^2$ <b>")))


def drawn(found):
    trials = found.trials
    return [*plots.accuracy_against_shots(trials), *figures.all_of_the_paper(trials, True), *figures.in_against_out(trials, True),
            *figures.parts_figures(tables.parts(found)), *figures.calibration_figures(collect.calibration(trials)),
            *figures.training_figures(found), *figures.cost_figures(trials), *figures.cost_against_shots(trials)]


def test_all_are_drawn_and_say_what_they_show(found):
    every = drawn(found)
    assert len({one.name for one in every}) == len(every) >= 18
    for one in every:
        text = " ".join(text.get_text() for text in one.figure.findobj(lambda artist: hasattr(artist, "get_text")))
        assert "trial" in text and len(one.alt) > 80
        dotted = [line for axes in one.figure.axes for line in axes.get_lines() if line.get_linestyle() == ":"]
        assert dotted, f"{one.name} has no yardstick"


def test_accuracies_stand_beside_the_untrained_model_and_no_bar_leaves_what_an_accuracy_can_be(tmp_path):
    trials = collect.collect(*filled(tmp_path, shots=(2, 16), seeds=range(2))).trials
    trials["accuracy"] = trials["seed"].map({0: 0.2, 1: 0.9})  # Student's t: -4 to 5
    for axes in plots.accuracy_against_shots(trials)[0].figure.axes:
        lines = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines()}
        constant = lines["constant prediction"]
        assert lines["untrained model"] == pytest.approx(constant - 5)
        bars = np.concatenate([np.concatenate(bars.get_segments())[:, 1] for bars in axes.collections])
        assert (bars.min(), bars.max()) == pytest.approx((0, 100))
    unknown = plots.accuracy_against_shots(trials.assign(untrained=np.nan))[0].figure.axes[0]
    assert "untrained model" not in [line.get_label() for line in unknown.get_lines()]


def test_nothing_is_drawn_of_nothing():
    empty = collect.Collected("empty")
    assert drawn(empty) == []


def test_a_method_has_one_colour_and_a_marker_of_its_own(found):
    lines = plots.named(found.trials)
    looks = plots.styles(lines["line"])
    assert all(looks[line]["color"] == plots.COLOURS[method] and looks[line]["marker"] == plots.MARKERS[method]
               for line, method in zip(lines["line"], lines["method"]))
    assert len(set(plots.MARKERS.values())) == len(plots.METHODS) == len(set(plots.COLOURS.values()))


def test_four_variants_of_a_method_are_told_apart_without_their_lines(tmp_path):
    lora = [{"method": "lora", "vary": {"rank": [1, 8, 64, 128]}}]
    looks = plots.styles(plots.named(collect.collect(*filled(tmp_path, shots=(2,), seeds=range(2), methods=lora)).trials)["line"])
    assert len(looks) == 4 == len({look["fillstyle"] for look in looks.values()})


def test_no_first_trial_waits_for_what_only_drawing_needs():
    """Every method notebook imports what shows its results with all else, long before it draws."""
    imported = "import sys, lowres; lowres.show, lowres.start, lowres.train, lowres.compared; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", imported], capture_output=True, text=True, check=True).stdout
    assert not {"matplotlib", "seaborn", "scipy.stats"} & set(said.split())


def test_a_methods_colours_are_seaborns_own():
    import seaborn as sns

    assert list(plots.COLOURS.values()) == sns.color_palette("colorblind", len(plots.METHODS)).as_hex()


def test_calibration_error_is_the_mean_gap(tmp_path):
    # 95 % sure and 80 % right on half of the rows, 55 % sure and as often right on the others: a gap of 7.5 points over all.
    sure, right = np.repeat([0.95, 0.55], 100), np.concatenate([np.arange(100) < 80, np.arange(100) < 55])
    rows = pd.DataFrame({"set": "test", "row": range(200), "label": 1, "prediction": right.astype(int), "logit_no": 0.0})
    rows["logit_yes"] = np.where(right, 1, -1) * np.log(sure / (1 - sure))
    records.write_trial(tmp_path, {"seed": 0}, rows.assign(trial=0))
    trials = pd.DataFrame({"method": "pbft", "variant": "", "model": "m", "task": "t", "shots": 2, "domain": "in", "set": "test",
                           "folder": str(tmp_path), "seed": [0]})
    table = collect.calibration(trials)
    assert table["ece"].to_numpy() == pytest.approx([0.075, 0.075])
    assert table[["confidence", "right", "rows"]].to_numpy().tolist() == [pytest.approx([0.55, 0.55, 100]), pytest.approx([0.95, 0.80, 100])]


def test_a_models_size_is_the_backbones_not_an_adapters(found):
    trials = found.trials.copy()
    sizes = {model: 1e8 * (i + 1) for i, model in enumerate(trials["model"].unique())}
    trials["parameters"] = trials["model"].map(sizes) + (trials["method"] == "lora") * 1e6
    figure = next(one.figure for one in figures.cost_against_shots(trials) if one.name == "cost-size")
    places = {float(x) for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata()) == 2 and line.get_linestyle() != ":"
              for x in line.get_xdata()}
    assert places == {100.0, 200.0}
    one_model = trials[trials["model"] == next(iter(sizes))]
    assert "cost-size" not in [one.name for one in figures.cost_against_shots(one_model)], "one size says nothing of sizes"


def test_pareto_front():
    assert figures.pareto([(1, 5), (2, 4), (3, 9), (2, 7), (2, 6)]) == [(1, 5), (2, 7), (3, 9)]


def test_a_picture_of_few_colours_is_the_same_picture_in_a_fraction_of_the_bytes():
    import io

    import numpy as np
    from matplotlib import pyplot as plt
    from PIL import Image

    from lowres.methods.show import few_colours

    figure, axes = plt.subplots()
    axes.plot(np.random.default_rng(0).normal(size=(50, 4)))
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    plt.close(figure)
    small = few_colours(whole)
    before, after = (np.asarray(Image.open(picture).convert("RGB"), float) for picture in (whole, io.BytesIO(small)))
    assert len(small) < 0.6 * len(whole.getvalue()) and np.abs(before - after).mean() < 2


def test_a_methods_colour_survives_in_a_picture_where_it_is_rare():
    import io

    import numpy as np
    from matplotlib.colors import to_rgb
    from PIL import Image

    from lowres.analysis.plots import COLOURS
    from lowres.methods.show import few_colours

    picture = np.full((400, 600, 3), 255, np.uint8)
    picture[::7, :, :] = np.linspace(0, 255, 600).astype(np.uint8)[None, :, None]  # many greys
    for i, colour in enumerate(COLOURS.values()):
        picture[10 + 20 * i : 13 + 20 * i, 10:16] = np.round(255 * np.array(to_rgb(colour)))
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="png")
    after = np.asarray(Image.open(io.BytesIO(few_colours(png))).convert("RGB"), float)
    for i, colour in enumerate(COLOURS.values()):
        assert np.abs(after[11 + 20 * i, 12] - 255 * np.array(to_rgb(colour))).max() < 25


def test_parts_of_one_label_are_held_against_guessing_not_against_a_constant_answer(tmp_path):
    found = collect.collect(*filled(tmp_path, shots=(2,), seeds=range(2), tasks=("mnli",)))
    parts = tables.parts(found)
    figure = figures.parts_figures(parts.assign(constant=1.0))[0].figure  # as HANS's parts, each of a heuristic and a label
    dotted = [line for line in figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert [list(line.get_xdata()) for line in dotted] == [[50, 50]] and dotted[0].get_label() == "guessing"
    mixed = figures.parts_figures(parts.assign(constant=0.7))[0].figure
    dotted = [line for line in mixed.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert {line.get_xdata()[0] for line in dotted} == {70} and len(dotted) == parts["part"].nunique()
    assert [text.get_text() for text in mixed.legends[0].get_texts()].count("constant prediction") == 1


def test_ranks_are_averaged_over_one_head_and_the_seeds_that_all_ranks_have(tmp_path):
    lora = [{"method": "lora"}, {"method": "lora", "set": {"head": "classifier"}}, {"method": "lora", "set": {"rank": 64, "seeds": [0, 1]}}]
    effect = lambda run, domain: 30.0 if run.parameters.head == "classifier" else 5.0  # noqa: E731
    found = collect.collect(*filled(tmp_path, shots=(2,), seeds=range(6), methods=lora, effect=effect, spread=0.5))
    figure = figures.lora_by_rank(found.trials)[0]
    assert "2 distinct trials a point" in figure.alt
    highest = max(float(y) for line in figure.figure.axes[0].get_lines() if line.get_linestyle() != ":" for y in line.get_ydata())
    assert highest < 69.3 + 10, "the classifier's are no part of it"


def ranks_of(drawn) -> dict[str, list]:
    """By a rank's name, the accuracies of its line in each panel."""
    lines = [line for axes in drawn.figure.axes for line in axes.get_lines() if "rank" in line.get_label()]
    return {name: [line.get_ydata() for line in lines if line.get_label() == name] for name in {line.get_label() for line in lines}}


def averaged_at(drawn) -> list[int]:
    """How many points the mean over ranks has, by panel."""
    return [len(line) for line in ranks_of(drawn).get("mean over ranks", [])]


def test_ranks_are_averaged_where_all_of_them_were_run_and_nowhere_else(tmp_path):
    lora = [{"method": "lora"}, {"method": "lora", "set": {"rank": 64}, "vary": {"shots": [16]}}]
    trials = collect.collect(*filled(tmp_path, shots=(2, 16), seeds=range(2), methods=lora)).trials
    assert set(averaged_at(figures.lora_by_rank(trials)[0])) == {1}, "16 shots have both ranks, 2 shots have one"
    alone = figures.lora_by_rank(trials[trials["shots"] == 2])[0]
    assert not averaged_at(alone) and "averaged" not in alone.alt, "one rank is no mean over ranks"


def test_ranks_are_not_averaged_where_one_lacks_a_seed_of_the_others(tmp_path):
    lora = [{"method": "lora", "vary": {"rank": [8, 64]}}]
    trials = collect.collect(*filled(tmp_path, shots=(2, 16), seeds=range(2), methods=lora)).trials
    assert set(averaged_at(figures.lora_by_rank(trials)[0])) == {2}
    begun = trials[~((trials["shots"] == 16) & (trials["rank"] == 64) & (trials["seed"] == 1))]
    assert set(averaged_at(figures.lora_by_rank(begun)[0])) == {1}, "at 16 shots the mean would be over other draws"


def test_ranks_without_a_seed_in_common_are_drawn_each_and_not_averaged(tmp_path):
    lora = [{"method": "lora", "set": {"seeds": [0, 1]}}, {"method": "lora", "set": {"rank": 64, "seeds": [2, 3]}}]
    [drawn, *_] = figures.lora_by_rank(collect.collect(*filled(tmp_path, shots=(2,), methods=lora)).trials)
    assert set(ranks_of(drawn)) == {"rank 8", "rank 64"} and "averaged" not in drawn.alt


def test_parts_of_a_few_rows_are_in_the_table_and_not_in_the_figure(tmp_path):
    parts = tables.parts(collect.collect(*filled(tmp_path, shots=(2,), seeds=range(2), tasks=("cola",))))
    names = list(parts["part"].unique())
    for few, drawn_parts in ((names[:1], names[1:]), (names, names)):  # where all are small, all are drawn
        table = parts.assign(rows=parts["part"].map(lambda name, few=few: 19 if name in few else 20))
        drawn = figures.parts_figures(table)[0]
        assert [label.get_text().split(" (")[0] for label in drawn.figure.axes[0].get_yticklabels()] == drawn_parts
        assert ("in the table alone" in drawn.alt) == (few != names)
        assert all(name in tables.parts_table(table).to_html() for name in names)


def test_a_figure_at_the_most_shots_names_who_is_not_in_it(tmp_path):
    methods = [{"method": "vanilla"}, {"method": "pbft"}, {"method": "lora", "vary": {"rank": [1], "shots": [2]}}]
    found = collect.collect(*filled(tmp_path, shots=(2, 16), seeds=range(3), methods=methods))
    every = [*figures.parts_figures(tables.parts(found)), *figures.calibration_figures(collect.calibration(found.trials)),
             *figures.training_figures(found), *figures.cost_figures(found.trials)]
    said = [one.alt for one in every]
    assert len(said) == 5 and all("Without results at that count: lora rank=1." in alt for alt in said)
    titles = [" ".join(one.figure.get_suptitle().split()) for one in every if one.name != "training"]
    assert all("Without results at that count: lora rank=1." in title for title in titles)
    whole = found.trials[found.trials["method"] != "lora"]
    assert not any("Without" in one.alt for one in figures.cost_figures(whole))


def test_seconds_of_several_machines_are_not_drawn_side_by_side_without_a_word(found):
    machines = found.trials.assign(machine=found.trials["method"])
    drawn = [figures.cost_figures(machines)[0], figures.cost_against_shots(machines)[0]]
    said = "Seconds are of 6 machines, and do not compare."
    assert all(said in one.alt and said in one.figure.get_suptitle() for one in drawn)
    assert not any("machines" in one.alt for one in figures.cost_figures(found.trials))


def test_parts_are_told_at_the_most_shots_of_their_own_task(tmp_path):
    parts = tables.parts(collect.collect(*filled(tmp_path, tasks=("cola", "mnli"), shots=(2, 16), seeds=range(2), methods=[{"method": "pbft"}])))
    shown = tables.parts_table(parts[(parts["task"] == "cola") | (parts["shots"] == 2)]).to_html()
    assert "rhl07" in shown and "constituent/entailment" in shown


def test_ranks_of_other_adapters_rates_and_fidelities_are_no_part_of_figure_5(tmp_path):
    lora = [{"method": "lora"}, {"method": "lora", "set": {"learning_rate": 0.5}}, {"method": "lora", "set": {"peft_type": "IA3"}},
            {"method": "lora", "set": {"fidelity": "as_coded", "head": "classifier", "learning_rate": 1.0e-5}}]
    effect = lambda run, domain: 5.0 if run.parameters == own else 25.0  # noqa: E731
    own = read_study(make_study(tmp_path, shots=(2,), seeds=range(3), methods=lora), outputs=str(tmp_path / "outputs")).runs[0].parameters
    trials = collect.collect(*filled(tmp_path, shots=(2,), seeds=range(3), methods=lora, effect=effect, spread=0.1)).trials
    [drawn] = figures.lora_by_rank(trials)
    [[points, _]] = ranks_of(drawn).values()  # in domain and out of domain
    assert points == pytest.approx([74.3], abs=0.5), "constant 69.3 and 5 points"


def test_all_ten_lines_of_a_method_look_different(tmp_path):
    lora = [{"method": "lora", "vary": {"rank": list(range(1, 11))}}]
    looks = plots.styles(plots.named(collect.collect(*filled(tmp_path, shots=(2,), seeds=range(2), methods=lora)).trials)["line"])
    assert len({(str(look["linestyle"]), look["fillstyle"]) for look in looks.values()}) == 10


def test_a_long_variants_name_is_whole_within_its_figure_and_on_no_panel(tmp_path):
    trials = collect.collect(*filled(tmp_path, shots=(2, 16), seeds=range(3))).trials
    long = "fidelity=as_coded,adapt=layers,head=classifier,layer_decay=1"
    for one in [*figures.in_against_out(trials.assign(variant=long), True), *plots.accuracy_against_shots(trials.assign(variant=long))]:
        one.figure.draw_without_rendering()
        legend, whole = one.figure.legends[0].get_window_extent(), one.figure.bbox
        assert max(axes.get_window_extent().x1 for axes in one.figure.axes) <= legend.x0
        assert (legend.x1 <= whole.x1 and whole.y0 <= legend.y0 and legend.y1 <= whole.y1)
        names = [text.get_text().replace("\n", "") for text in one.figure.legends[0].get_texts()]
        assert {f"{method} {long}" for method in trials["method"]} <= set(names)


def test_rows_with_long_names_do_not_run_into_each_other(tmp_path):
    path = make_study(tmp_path, shots=(2,), seeds=range(2), methods=[
        {"method": "distillation", "set": {"demonstrations": 1, "inputs": "pool", "unlabelled": 32}, "vary": {"temperature": [1.0, 2.0, 4.0, 8.0]}}])
    outputs = str(tmp_path / "outputs")
    fill(read_study(path, outputs=outputs))
    axes = plots.accuracy_against_shots(collect.collect(path, outputs).trials)[0].figure.axes[0]
    places = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert len(places) == 4 and all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(places))


def test_no_panels_title_runs_into_the_next(tmp_path):
    models = ("facebook/opt-125m", "facebook/opt-350m")
    found = collect.collect(*filled(tmp_path, tasks=(GRAMMAR,), shots=(2,), seeds=range(2), models=models, methods=[{"method": "pbft"}]))
    [drawn] = figures.training_figures(found)
    drawn.figure.draw_without_rendering()
    left, right = (axes.title.get_window_extent() for axes in drawn.figure.axes)
    assert left.x1 <= right.x0


def test_captions_speak_of_published_marks_only_where_there_are_any(found, tmp_path):
    by_name = {one.name: one.alt for one in figures.all_of_the_paper(found.trials, published=True)}
    other = collect.collect(*filled(tmp_path, tasks=(GRAMMAR, "mnli"), shots=(2,), seeds=range(2))).trials
    without = [*figures.lora_by_rank(other, True), *figures.in_against_out(other[other["task"] == GRAMMAR], True)]
    assert len(without) == 3 and not any("hollow grey" in one.alt for one in without), "LoRA was published on CoLA alone"
    assert all("hollow grey" in one.alt for one in figures.in_against_out(found.trials, True))
    assert "hollow grey" in by_name["paper-vanilla"]
    assert "hollow grey" not in by_name["paper-in_context"] and "not in the paper" in by_name["paper-in_context"]


def test_training_curves_are_shown_with_their_words(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *said, **more: shown.append((said[0], more)))
    show.loss_curves([{"seed": 0, "losses": [0.8, 0.2]}, {"seed": 1, "losses": [0.6, 0.1]}], labels=2)
    alt = shown[0][1]["metadata"]["image/png"]["alt"]
    assert alt == "Training loss against the optimizer step, 2 trials: from 0.70 to 0.15 in the mean; dotted: knowing nothing, 0.69."
    assert shown[0][0]["image/png"].startswith(b"\x89PNG") and shown[0][0]["text/plain"] == alt


@pytest.mark.parametrize(("task", "answers"), [(GRAMMAR, 2), (REQUESTS, 2**4), (STORIES, None)])
def test_the_loss_of_knowing_nothing_is_that_of_all_answers_that_a_row_may_have(task, answers):
    parameters = SimpleNamespace(model="m", task=task, shots=16)
    run = SimpleNamespace(method="vanilla", variant="", parameters=parameters)
    [drawn] = figures.training_figures(SimpleNamespace(runs=[(run, [{"losses": [2.0, 1.0]}, {"losses": [3.0, 1.5]}])]))
    levels = [line.get_ydata()[0] for line in drawn.figure.axes[0].get_lines() if line.get_linestyle() == ":"]
    assert levels == ([] if answers is None else [pytest.approx(np.log(answers))])


def test_of_very_many_labels_the_sets_are_too_many_for_a_float_and_are_drawn_all_the_same(monkeypatch):
    monkeypatch.setattr(figures, "_options", lambda task: 2**2000)
    run = SimpleNamespace(method="vanilla", variant="", parameters=SimpleNamespace(model="m", task=REQUESTS, shots=16))
    [drawn] = figures.training_figures(SimpleNamespace(runs=[(run, [{"losses": [2.0, 1.0]}])]))
    assert [line.get_ydata()[0] for line in drawn.figure.axes[0].get_lines() if line.get_linestyle() == ":"] == [pytest.approx(2000 * np.log(2))]


def test_models_of_one_name_in_two_folders_have_figures_of_their_own():
    names = {plots.file_name("shots", "cola", model) for model in ("a/x", "b/x", "x")}
    assert len(names) == 3 and "shots-cola-x" in names and not any("/" in name for name in names)


def test_the_answer_at_one_number_of_shots_has_a_line_a_method_and_upright_yardsticks(tmp_path):
    trials = collect.collect(*filled(tmp_path, shots=(16,), seeds=range(3))).trials
    [drawn] = plots.answer(trials)
    for axes in drawn.figure.axes:
        constant = next(line for line in axes.get_lines() if line.get_linestyle() == ":")
        assert len(set(constant.get_xdata())) == 1 and axes.get_xlim()[0] < constant.get_xdata()[0] < axes.get_xlim()[1]
    assert [label.get_text() for label in drawn.figure.axes[0].get_yticklabels()][:2] == ["vanilla", "pbft"]
    [across] = plots.answer(collect.collect(*filled(tmp_path, name="more", shots=(2, 16), seeds=range(3))).trials)
    dotted = next(line for line in across.figure.axes[0].get_lines() if line.get_linestyle() == ":")
    assert len(set(dotted.get_ydata())) == 1 and across.figure.axes[0].get_xscale() == "log"


def test_accuracy_is_drawn_against_a_setting_that_has_three_numbers_and_against_no_other(tmp_path):
    widths = [{"width": width} for width in (8, 64, 256)]
    methods = [{"method": "lora", "vary": {"rank": [1, 4, 16]}}, {"method": "lora", "set": {"rank": 4}, "vary": {"epochs": [1, 2]}},
               {"method": "lora", "set": {"peft_type": "BOTTLENECK", "learning_rate": 1e-3}, "vary": {"peft_options": widths}},
               {"method": "distillation", "vary": {"inputs": ["few-shot", "pool"], "demonstrations": [1, 4, 16], "temperature": [1.0, 2.0]}},
               {"method": "vanilla", "vary": {"learning_rate": [1e-5, 5e-5, 2e-4]}}]
    found = plots.against_settings(collect.collect(*filled(tmp_path, shots=(16,), seeds=range(3), methods=methods)).trials)
    lines = {one.name.split("-")[0]: set(one.alt.split("): ")[1].split(". ")[0].split("; ")) for one in found if one.name.split("-")[1] == "cola"}
    assert lines == {"rank": {"lora"}, "width": {"lora peft_type=BOTTLENECK,learning_rate=0.001"}, "learning_rate": {"vanilla"}, "demonstrations": {
        f"distillation inputs={inputs},temperature={temperature}" for inputs in ("few-shot", "pool") for temperature in (1, 2)}}
    ticks = {one.name.split("-")[0]: [tick.get_text() for tick in one.figure.axes[0].get_xticklabels()] for one in found}
    assert ticks == {"rank": ["1", "4", "16"], "width": ["8", "64", "256"], "demonstrations": ["1", "4", "16"],
                     "learning_rate": ["1e-05", "5e-05", "0.0002"]}


def test_a_name_that_begins_with_a_number_is_no_number(found):
    several = [{"label_words": "2-way"}, {"pattern": "3e"}, {"pattern": "1.2.3"}, {"label_words": "0-9", "rank": 1}]
    trials = pd.concat([found.trials.assign(settings=[settings] * len(found.trials)) for settings in several], ignore_index=True)
    assert plots.against_settings(trials) == []
