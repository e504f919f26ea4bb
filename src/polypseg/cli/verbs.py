"""All verbs, in the order in which the help lists them."""

from __future__ import annotations

from polypseg.cli import (
    annotating,
    average,
    benchmark,
    calibrate,
    compare,
    data,
    demo,
    dicom,
    evaluate,
    export,
    models,
    predict,
    runs,
    serve,
    train,
    tune,
)

VERBS = {
    verb.name: verb
    for verb in (
        predict.VERB,
        serve.VERB,
        dicom.VERB,
        *annotating.VERBS,
        models.VERB,
        *data.VERBS,
        train.VERB,
        tune.VERB,
        average.VERB,
        runs.VERB,
        evaluate.VERB,
        calibrate.VERB,
        compare.VERB,
        export.VERB,
        benchmark.VERB,
        demo.VERB,
    )
}
