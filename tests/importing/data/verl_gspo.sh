#!/usr/bin/env bash
# verl's settings for its GSPO example, as a script with variables and an array.
set -x

loss_mode=gspo
clip_low=3e-4
clip_high=4e-4
prompts=512
updates=4
ACTOR=(actor_rollout_ref.actor.policy_loss.loss_mode=${loss_mode}
    actor_rollout_ref.actor.loss_agg_mode="seq-mean-token-mean"
    actor_rollout_ref.actor.clip_ratio_low=${clip_low}
    actor_rollout_ref.actor.clip_ratio_high=$clip_high
)

python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_batch_size=${prompts} \
    data.max_response_length=$((1024 * 8)) \
    actor_rollout_ref.actor.ppo_mini_batch_size=$((prompts / updates)) \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.rollout.n=16 \
    actor_rollout_ref.model.path=${MODEL_PATH:-Qwen/Qwen3-0.6B} \
    'trainer.logger=["console","wandb"]' \
    "${ACTOR[@]}" "$@"
