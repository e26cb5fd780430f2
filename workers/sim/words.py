"""What the simulated model can say: some of the commonest English words, and ours."""

from __future__ import annotations

_TEXT = """
a about above across after again against all along also an and answer any are around as ask at
back batch be because before begin below best better between block book both bring build but by
cache call can carry change choose city clear clock close cold come could count cut dark day deep
do does done door down draw each early earth east end engine even every fall far fast few find
fire first five flow follow for four free from full gate give go good great green ground group
grow half hand hard have head hear heat help here high hold home host hour house how if in inside
into is it its just keep key kind know land large last late layer learn leave left less let light
like line link list little long look low made make many mark may mean might mind minute model more
morning most move much must name near need never new next night no north not now number of off
often old on once one only open or order other our out over own page part pass past path place
plan point port press put queue quick quiet rain range reach read real rest right ring river road
room round route run same sand say sea second see seem send set several shape share she short show
side sign since six slow small so some soon sound south space spring stand star start state stay
step still stone stop store stream street such sun sure table take talk tell ten than that the
their them then there these they thing think this those three through time to today together token
too top toward tree true turn two under until up upon use very voice wait walk wall want warm was
watch water way we week well west what when where which while white who why wide will wind winter
with without wood word work world would write year yes yet you young
"""

WORDS = tuple(_TEXT.split())
