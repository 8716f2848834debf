# shellcheck shell=bash
# What the sbatch files share: each sources this file in the repository's root, then runs its stage.

fail() {
    echo "error: $*" >&2
    exit 2
}

load_site() {
    [[ -f slurm/site.env ]] || fail "slurm/site.env is missing: copy slurm/site.env.example to it and edit the copy"
    # shellcheck disable=SC1091
    source slurm/site.env || fail "slurm/site.env cannot be loaded here"
}

# All nodes of the job, and as many tasks on each as it has GPUs, or without any as --ntasks-per-node says.
count_tasks() {
    local gpus=${SLURM_GPUS_ON_NODE:-0} given=${SLURM_NTASKS_PER_NODE:-}
    [[ -z ${SLURM_NTASKS:-} || -n $given ]] ||
        fail "--ntasks=$SLURM_NTASKS does not say how many tasks a node gets; use --nodes and --ntasks-per-node"
    if ((gpus > 0)); then
        [[ $given ]] || given=$gpus
        case $stage in
            # A teacher's engine (vLLM) may take several GPUs: each task has one engine.
            annotate | cache_logits)
                ((given <= gpus && gpus % given == 0)) ||
                    fail "--ntasks-per-node=$given does not divide the $gpus GPUs of a node" ;;
            *)
                ((given == gpus)) ||
                    fail "--ntasks-per-node=$given, but $gpus GPUs on a node: each GPU gets one task; leave the option out" ;;
        esac
    fi
    tasks=${given:-1} nodes=$SLURM_JOB_NUM_NODES
    ((tasks <= SLURM_CPUS_ON_NODE)) ||
        fail "$tasks tasks on a node, but $SLURM_CPUS_ON_NODE CPUs; set SBATCH_CPUS_PER_GPU in slurm/site.env"
}

# A job is signalled some time before its limit. One whose limit is not longer than that would be stopped at its start,
# requeued, and stopped again.
check_limit() {
    local warning=${SBATCH_SIGNAL:-USR1@300} job start end
    warning=${warning##*@}
    job=$(scontrol show job -o "$SLURM_JOB_ID" | head -n 1)
    [[ $job =~ \ StartTime=([^\ ]+)\ EndTime=([^\ ]+) ]] || return 0
    start=${BASH_REMATCH[1]} end=${BASH_REMATCH[2]}
    # Without a limit there is no end.
    [[ $end == *[0-9]T[0-9]* ]] || return 0
    local limit=$(($(date -d "$end" +%s) - $(date -d "$start" +%s)))
    ((limit > warning)) ||
        fail "a time limit of $limit s, of which the last $warning s are for saving: raise it (--time), or lower SBATCH_SIGNAL"
}

# Sends a job that a signal stopped back to the queue, where it continues from its checkpoint.
requeue() {
    local job=$SLURM_JOB_ID restarts=${SLURM_RESTART_COUNT:-0}
    # One task of an array has the whole array's id as its SLURM_JOB_ID.
    [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if [[ $(scontrol show job -o "$job") != *JobState=RUNNING* ]]; then
        # A cancelled job must not come back, and what SLURM requeues does so by itself.
        echo "ended by SLURM; where it is not requeued, submitting again continues it"
    elif ((restarts >= ${KINDRED_MAX_RESTARTS:-50})); then
        echo "error: stopped after $restarts restarts (KINDRED_MAX_RESTARTS); submitting again continues it"
    elif scontrol requeue "$job"; then
        echo "requeued"
    else
        echo "error: could not be requeued; submitting again continues it"
    fi
}

# run STAGE [CONFIG|JOBS.jsonl] [overrides]: a list of jobs belongs to an array, whose tasks take a line each.
run() {
    local stage=$1 file=${2:-} command tasks=1 nodes=1
    shift
    local submitted_from=${KINDRED_SITE:-}
    load_site
    [[ $submitted_from ]] || fail "slurm/site.env was not loaded where this was submitted: source it, submit again"
    [[ -f $file ]] || fail "sbatch slurm/STAGE.sbatch CONFIG [overrides]: there is no file CONFIG='$file'"
    shift
    if [[ $file == *.jsonl ]]; then
        [[ ${SLURM_ARRAY_TASK_ID:-} ]] || fail "$file is a list of jobs: say which lines with --array=0-7"
        command=(-m scripts.job "$file" "$SLURM_ARRAY_TASK_ID" "$@")
    elif [[ $stage == study ]]; then
        command=(-m scripts.study analyze --config "$file" "$@")
    else
        command=(-m "scripts.$stage" --config "$file" "$@")
    fi
    check_limit
    [[ $stage == study ]] || count_tasks
    MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
    # Below what the kernel hands out itself, and another for each job that shares a node.
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    OMP_NUM_THREADS=$((SLURM_CPUS_ON_NODE / tasks))
    # A task that fails lets its peers wait for it; then they are ended, too.
    SLURM_WAIT=${SLURM_WAIT:-600}
    export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS SLURM_WAIT WANDB_MODE=${WANDB_MODE:-offline}
    export PYTHONPATH=$PWD PYTHONFAULTHANDLER=1 NCCL_DEBUG=${NCCL_DEBUG:-WARN}
    # They are what sbatch was asked for; srun would take them as its own options, against the ones below.
    unset SLURM_NTASKS SLURM_NPROCS SLURM_CPUS_PER_GPU SLURM_GPUS_PER_TASK SLURM_CPUS_PER_TASK SLURM_TRES_PER_TASK
    echo "attempt $((${SLURM_RESTART_COUNT:-0} + 1)): ${command[*]} ($SLURM_JOB_NODELIST, $tasks tasks each)"
    # The signals are the tasks' concern; this shell must outlive them.
    trap : TERM USR1
    # With a task's exit the others are not killed: they are saving. Not told of its processors, a task with all its
    # loader workers may be bound to one.
    srun --nodes="$nodes" --ntasks-per-node="$tasks" --cpus-per-task="$OMP_NUM_THREADS" --kill-on-bad-exit=0 \
        "${CONTAINER[@]}" python -u "${command[@]}"
    local code=$?
    # 75 says that all is saved; 138 and 143 are USR1 and TERM before Python could listen.
    case $code in 75 | 138 | 143) requeue ;; esac
    exit $code
}
