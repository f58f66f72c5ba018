"""The small pipeline, broken on purpose: killed, stopped, out of disk and memory, damaged, cut off from power.

    cd tests && python -m faults --seed 0 --count 500

A case breaks one stage at a seeded moment, starts the same line again without a fault, and checks what is left. Stages
run in copies of a process that has the imports, and the program is not changed for it: all faults come from outside."""
