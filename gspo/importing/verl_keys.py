"""The names of verl 0.9.1's settings, and why those without a handler have nothing here that answers to them.

Read in the configuration that verl generates for its FSDP and Megatron trainers. A name that is not here is a mistake;
`OPEN` are tables in which any name may stand.
"""

from collections.abc import Iterator

AREAS = (
    (
        "actor_rollout_ref.actor.profiler actor_rollout_ref.ref.profiler critic.profiler",
        """
        all_ranks enable finish_hook_all_ranks finish_hook_cmd finish_hook_ranks ranks relocate_results save_path tool
        tool_config.npu.analysis tool_config.npu.contents tool_config.npu.discrete tool_config.npu.level
        tool_config.nsys.discrete tool_config.precision_debugger.config_path tool_config.precision_debugger.stages
        tool_config.precision_debugger.steps tool_config.precision_debugger.strict tool_config.torch.contents
        tool_config.torch.discrete tool_config.torch.schedule.active tool_config.torch.schedule.repeat
        tool_config.torch.schedule.skip_first tool_config.torch.schedule.wait tool_config.torch.schedule.warmup
        tool_config.torch_memory.memory_snapshot_num_steps tool_config.torch_memory.stack_depth
        tool_config.torch_memory.trace_alloc_max_entries
        """,
    ),
    (
        "actor_rollout_ref.actor.qat actor_rollout_ref.actor.fsdp_config.qat "
        "actor_rollout_ref.actor.megatron.qat actor_rollout_ref.ref.fsdp_config.qat "
        "actor_rollout_ref.ref.megatron.qat critic.fsdp.qat critic.megatron.qat",
        """
        activation_observer enable group_size ignore_patterns mode quantization_config_path
        """,
    ),
    (
        "actor_rollout_ref.actor.fsdp_config actor_rollout_ref.ref.fsdp_config critic.fsdp",
        """
        dtype entropy_checkpointing entropy_from_logits_chunk_size entropy_from_logits_with_chunking forward_only
        forward_prefetch fsdp_size full_determinism model_dtype offload_policy optimizer_offload pad_to_length
        pad_to_length_bucket param_offload reshard_after_forward seed strategy
        turbo_config.distributed.expert_fully_shard_parallel_size turbo_config.distributed.expert_parallel_size
        turbo_config.distributed.fsdp_plan.fsdp_implementation
        turbo_config.distributed.fsdp_plan.num_to_backward_prefetch
        turbo_config.distributed.fsdp_plan.num_to_forward_prefetch turbo_config.distributed.fsdp_plan.output_dtype
        turbo_config.distributed.fsdp_plan.param_dtype turbo_config.distributed.fsdp_plan.reduce_dtype
        turbo_config.distributed.fully_shard_parallel_size turbo_config.distributed.tensor_parallel_size
        turbo_config.distributed.ulysses_parallel_size ulysses_sequence_parallel_size
        use_no_sync_for_gradient_accumulation use_orig_params use_torch_compile wrap_policy.min_num_params
        """,
    ),
    (
        "actor_rollout_ref.actor.megatron actor_rollout_ref.ref.megatron critic.megatron",
        """
        context_parallel_size dist_checkpointing_path dist_checkpointing_prefix dist_ckpt_optim_fully_reshardable
        distrib_optim_fully_reshardable_mem_efficient dtype dynamic_context_parallel entropy_from_logits_chunk_size
        entropy_from_logits_with_chunking expert_model_parallel_size expert_tensor_parallel_size forward_only
        max_seqlen_per_dp_cp_rank optimizer_offload override_ddp_config override_mcore_model_config
        override_transformer_config.attention_backend override_transformer_config.recompute_granularity
        override_transformer_config.recompute_method override_transformer_config.recompute_modules
        override_transformer_config.recompute_num_layers pad_bshd_to_minibatch_max pad_to_length pad_to_length_bucket
        param_offload pipeline_model_parallel_size router_replay.mode router_replay.record_file
        router_replay.replay_file seed sequence_parallel tensor_model_parallel_size use_dist_checkpointing
        use_distributed_optimizer use_mbridge use_megatron_fsdp use_remove_padding vanilla_mbridge
        virtual_pipeline_model_parallel_size
        """,
    ),
    (
        "actor_rollout_ref.model critic.model",
        """
        custom_chat_template enable_activation_offload enable_gradient_checkpointing exclude_modules external_lib
        fused_kernel_options.impl_backend hf_config_path lora.a2a_experimental lora.adapter_path lora.alpha lora.dropout
        lora.dropout_position lora.dtype lora.exclude_modules lora.freeze_language_model lora.freeze_vision_model
        lora.freeze_vision_projection lora.lora_A_init_method lora.lora_B_init_method lora.merge lora.rank
        lora.target_modules lora.type lora_adapter_path lora_alpha lora_rank mtp.detach_encoder mtp.enable
        mtp.enable_rollout mtp.enable_train mtp.method mtp.mtp_loss_scaling_factor mtp.num_speculative_tokens
        mtp.speculative_algorithm mtp.speculative_eagle_topk mtp.speculative_num_draft_tokens mtp.speculative_num_steps
        override_config path target_modules tiled_mlp.enabled tiled_mlp.num_shards tokenizer_path trust_remote_code
        use_fused_kernels use_liger use_remove_padding use_shm
        """,
    ),
    (
        "actor_rollout_ref.actor.optim critic.optim",
        """
        betas clip_grad exp_avg_dtype exp_avg_sq_dtype grad_clip lr lr_decay_steps lr_decay_style lr_scheduler_type
        lr_warmup_init lr_warmup_steps lr_warmup_steps_ratio lr_wsd_decay_steps lr_wsd_decay_style main_grads_dtype
        min_lr min_lr_ratio muon_coefficient_type muon_extra_scale_factor muon_fp32_matmul_prec
        muon_match_adamw_update_rms muon_momentum muon_nesterov muon_num_ns_steps muon_scalar_optimizer muon_scale_mode
        muon_split_qkv muon_tp_mode num_cycles optimizer optimizer_impl override_optimizer_config total_training_steps
        use_checkpoint_opt_param_scheduler use_layer_wise_distributed_optimizer use_precision_aware_optimizer
        warmup_style weight_decay weight_decay_incr_style zero_indexed_step
        """,
    ),
    (
        "actor_rollout_ref.actor",
        """
        calculate_entropy calculate_sum_pi_squared checkpoint.async_save checkpoint.load_contents
        checkpoint.mbridge_config checkpoint.save_contents checkpoint.strict clip_ratio clip_ratio_c clip_ratio_high
        clip_ratio_low data_loader_seed entropy_checkpointing entropy_coeff entropy_from_logits_chunk_size
        entropy_from_logits_with_chunking freeze_vision_tower grad_clip kl_loss_coef kl_loss_type loss_agg_mode
        loss_scale_factor pad_to_length policy_loss.clip_cov_lb policy_loss.clip_cov_ratio policy_loss.clip_cov_ub
        policy_loss.dro_beta policy_loss.kl_cov_ratio policy_loss.loss_mode policy_loss.ppo_kl_coef ppo_epochs
        ppo_infer_max_token_len_per_gpu ppo_infer_micro_batch_size_per_gpu ppo_max_token_len_per_gpu
        ppo_micro_batch_size ppo_micro_batch_size_per_gpu ppo_mini_batch_size rollout_n shuffle strategy tau_neg tau_pos
        ulysses_sequence_parallel_size use_dynamic_bsz use_fused_kernels use_kl_loss use_prefix_grouper
        use_remove_padding use_rollout_log_probs use_torch_compile
        """,
    ),
    (
        "actor_rollout_ref",
        """
        hybrid_engine nccl_timeout
        """,
    ),
    (
        "actor_rollout_ref.ref",
        """
        entropy_checkpointing entropy_from_logits_chunk_size entropy_from_logits_with_chunking
        log_prob_max_token_len_per_gpu log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu
        log_prob_use_dynamic_bsz megatron.override_transformer_config pad_to_length rollout_n strategy
        ulysses_sequence_parallel_size use_torch_compile
        """,
    ),
    (
        "actor_rollout_ref.rollout",
        """
        agent.agent_loop_config_path agent.custom_async_server.name agent.custom_async_server.path
        agent.default_agent_loop agent.num_workers calculate_log_probs checkpoint_engine.backend
        checkpoint_engine.custom_backend_module checkpoint_engine.engine_kwargs
        checkpoint_engine.update_weights_bucket_megabytes cudagraph_capture_sizes data_parallel_size disable_log_stats
        disaggregation.bootstrap_port disaggregation.decode_replicas disaggregation.decode_tensor_model_parallel_size
        disaggregation.enabled disaggregation.ib_device disaggregation.prefill_replicas disaggregation.transfer_backend
        do_sample dtype enable_chunked_prefill enable_prefix_caching enable_rollout_routing_replay enforce_eager
        engine_kwargs.sglang engine_kwargs.trtllm engine_kwargs.vllm expert_parallel_size free_cache_engine
        full_determinism gpu_memory_utilization ignore_eos layered_summon load_format log_prob_max_token_len_per_gpu
        log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu log_prob_use_dynamic_bsz logprobs_mode max_model_len
        max_num_batched_tokens max_num_seqs mode moe_load_balance_metrics_interval mtp multi_stage_wake_up
        multi_turn.enable multi_turn.format multi_turn.function_tool_path multi_turn.max_assistant_turns
        multi_turn.max_parallel_calls multi_turn.max_tool_response_length multi_turn.max_user_turns
        multi_turn.num_repeat_rollouts multi_turn.tokenization_sanity_check_mode multi_turn.tool_config_path
        multi_turn.tool_response_truncate_side multi_turn.use_inference_chat_template n n_gpus_per_node name nnodes
        over_sample_rate pipeline_model_parallel_size profiler.all_ranks profiler.enable profiler.finish_hook_all_ranks
        profiler.finish_hook_cmd profiler.finish_hook_ranks profiler.ranks profiler.relocate_results profiler.save_path
        profiler.tool profiler.tool_config.npu.analysis profiler.tool_config.npu.contents
        profiler.tool_config.npu.discrete profiler.tool_config.npu.level profiler.tool_config.npu.profile_token_end
        profiler.tool_config.npu.profile_token_start profiler.tool_config.precision_debugger.config_path
        profiler.tool_config.precision_debugger.stages profiler.tool_config.precision_debugger.steps
        profiler.tool_config.precision_debugger.strict profiler.tool_config.torch.contents
        profiler.tool_config.torch.discrete profiler.tool_config.torch.profile_token_end
        profiler.tool_config.torch.profile_token_start prometheus.enable prometheus.file prometheus.port
        prometheus.served_model_name prompt_length qat quantization quantization_config_file response_length
        router_config_path scheduling_policy seed skip_tokenizer_init temperature tensor_model_parallel_size top_k top_p
        trace.backend trace.experiment_name trace.max_samples_per_step_per_worker trace.project_name trace.token2text
        val_kwargs.do_sample val_kwargs.n val_kwargs.temperature val_kwargs.top_k val_kwargs.top_p
        """,
    ),
    (
        "algorithm",
        """
        adv_estimator filter_groups.enable filter_groups.max_inflight_gen_batches filter_groups.max_num_gen_batches
        filter_groups.metric gamma gdpo_reward_keys gdpo_reward_weights kl_ctrl.horizon kl_ctrl.kl_coef
        kl_ctrl.target_kl kl_ctrl.type kl_penalty lam norm_adv_by_std_in_grpo pf_ppo.reweight_method pf_ppo.weight_pow
        rollout_correction.bypass_mode rollout_correction.loss_type rollout_correction.rollout_is
        rollout_correction.rollout_is_batch_normalize rollout_correction.rollout_is_threshold
        rollout_correction.rollout_rs rollout_correction.rollout_rs_threshold use_kl_in_reward use_pf_ppo
        """,
    ),
    (
        "critic",
        """
        checkpoint.async_save checkpoint.load_contents checkpoint.mbridge_config checkpoint.save_contents
        cliprange_value data_loader_seed enable forward_max_token_len_per_gpu forward_micro_batch_size
        forward_micro_batch_size_per_gpu grad_clip loss_agg_mode loss_scale_factor nccl_timeout ppo_epochs
        ppo_max_token_len_per_gpu ppo_micro_batch_size ppo_micro_batch_size_per_gpu ppo_mini_batch_size rollout_n
        shuffle strategy ulysses_sequence_parallel_size use_dynamic_bsz
        """,
    ),
    (
        "custom_reward_function",
        """
        name path
        """,
    ),
    (
        "data",
        """
        apply_chat_template_kwargs audio_key custom_cls.name custom_cls.path dataloader_num_workers
        filter_overlong_prompts filter_overlong_prompts_workers function_tool_path gen_batch_size image_key
        image_patch_size max_prompt_length max_response_length mm_processor_kwargs prompt_key return_full_prompt
        return_multi_modal_inputs return_raw_chat return_raw_input_ids reward_fn_key seed shuffle tokenizer
        tool_config_path train_batch_size train_files train_max_samples truncation trust_remote_code use_shm
        val_batch_size val_files val_max_samples validation_shuffle video_key
        """,
    ),
    (
        "distillation",
        """
        distillation_loss.clip_ratio distillation_loss.clip_ratio_high distillation_loss.clip_ratio_low
        distillation_loss.distillation_loss_coef distillation_loss.log_prob_min_clamp distillation_loss.loss_max_clamp
        distillation_loss.loss_mode distillation_loss.policy_loss_mode distillation_loss.topk
        distillation_loss.use_policy_gradient distillation_loss.use_task_rewards enabled n_gpus_per_node nnodes
        teacher_key
        """,
    ),
    (
        "distillation.teacher_models.teacher_model",
        """
        inference.cudagraph_capture_sizes inference.data_parallel_size inference.disable_log_stats inference.dtype
        inference.enable_chunked_prefill inference.enable_prefix_caching inference.enforce_eager inference.engine_kwargs
        inference.expert_parallel_size inference.free_cache_engine inference.gpu_memory_utilization
        inference.limit_images inference.load_format inference.max_model_len inference.max_num_batched_tokens
        inference.max_num_seqs inference.name inference.prompt_length inference.response_length
        inference.skip_tokenizer_init inference.temperature inference.tensor_model_parallel_size key model_path
        num_replicas
        """,
    ),
    (
        "global_profiler",
        """
        finish_hook_all_ranks finish_hook_cmd finish_hook_ranks
        global_tool_config.nsys.controller_nsight_options.cuda-graph-trace
        global_tool_config.nsys.controller_nsight_options.cuda-memory-usage
        global_tool_config.nsys.controller_nsight_options.trace global_tool_config.nsys.discrete
        global_tool_config.nsys.worker_nsight_options.capture-range
        global_tool_config.nsys.worker_nsight_options.capture-range-end
        global_tool_config.nsys.worker_nsight_options.cuda-graph-trace
        global_tool_config.nsys.worker_nsight_options.cuda-memory-usage
        global_tool_config.nsys.worker_nsight_options.kill global_tool_config.nsys.worker_nsight_options.trace
        global_tool_config.precision_debugger.config_path global_tool_config.precision_debugger.stages
        global_tool_config.precision_debugger.steps global_tool_config.precision_debugger.strict
        global_tool_config.torch_memory.context global_tool_config.torch_memory.kw_args
        global_tool_config.torch_memory.memory_snapshot_num_steps global_tool_config.torch_memory.stack_depth
        global_tool_config.torch_memory.stacks global_tool_config.torch_memory.trace_alloc_max_entries
        profile_continuous_steps relocate_results save_path steps tool
        """,
    ),
    (
        "ray_kwargs",
        """
        ray_init.num_cpus ray_init.runtime_env.py_executable timeline_json_file
        """,
    ),
    (
        "reward",
        """
        custom_reward_function.name custom_reward_function.path num_workers reward_manager.module.name
        reward_manager.module.path reward_manager.name reward_manager.source sandbox_fusion.max_concurrent
        sandbox_fusion.memory_limit_mb sandbox_fusion.url
        """,
    ),
    (
        "reward.reward_model",
        """
        enable enable_resource_pool model_path n_gpus_per_node nnodes rollout.cudagraph_capture_sizes
        rollout.data_parallel_size rollout.disable_log_stats rollout.disaggregation.bootstrap_port
        rollout.disaggregation.decode_replicas rollout.disaggregation.decode_tensor_model_parallel_size
        rollout.disaggregation.enabled rollout.disaggregation.ib_device rollout.disaggregation.prefill_replicas
        rollout.disaggregation.transfer_backend rollout.do_sample rollout.dtype rollout.enable_chunked_prefill
        rollout.enable_prefix_caching rollout.enforce_eager rollout.engine_kwargs rollout.expert_parallel_size
        rollout.free_cache_engine rollout.full_determinism rollout.gpu_memory_utilization rollout.ignore_eos
        rollout.layered_summon rollout.limit_images rollout.load_format rollout.max_model_len
        rollout.max_num_batched_tokens rollout.max_num_seqs rollout.mtp rollout.multi_stage_wake_up rollout.n
        rollout.name rollout.pipeline_model_parallel_size rollout.prompt_length rollout.quantization
        rollout.quantization_config_file rollout.response_length rollout.scheduling_policy rollout.seed
        rollout.skip_tokenizer_init rollout.temperature rollout.tensor_model_parallel_size rollout.top_k rollout.top_p
        """,
    ),
    (
        "reward_model",
        """
        enable enable_resource_pool model.external_lib model.path model.trust_remote_code n_gpus_per_node nnodes
        num_workers reward_loop_class_name reward_loop_module_path reward_loop_source reward_manager
        rollout.cudagraph_capture_sizes rollout.data_parallel_size rollout.disable_log_stats rollout.dtype
        rollout.enable_chunked_prefill rollout.enable_prefix_caching rollout.enforce_eager rollout.engine_kwargs
        rollout.expert_parallel_size rollout.free_cache_engine rollout.gpu_memory_utilization rollout.limit_images
        rollout.load_format rollout.max_model_len rollout.max_num_batched_tokens rollout.max_num_seqs rollout.name
        rollout.prompt_length rollout.response_length rollout.skip_tokenizer_init rollout.tensor_model_parallel_size
        """,
    ),
    (
        "sandbox_fusion",
        """
        max_concurrent memory_limit_mb url
        """,
    ),
    (
        "skip",
        """
        async_rollout.action async_rollout.dump_dir async_rollout.enable async_rollout.steps rollout.action
        rollout.dump_dir rollout.enable rollout.steps rollout_tq.action rollout_tq.dump_dir rollout_tq.enable
        rollout_tq.steps
        """,
    ),
    (
        "trainer",
        """
        balance_batch checkpoint_callback_class critic_warmup default_hdfs_dir default_local_dir
        del_local_ckpt_after_load device esi_redundant_time experiment_name log_val_generations logger
        max_actor_ckpt_to_keep max_critic_ckpt_to_keep n_gpus_per_node nnodes project_name
        ray_wait_register_center_timeout resume_from_path resume_mode rollout_data_dir save_freq test_freq total_epochs
        total_training_steps use_v1 val_before_train val_only validation_data_dir
        """,
    ),
    (
        "trainer.v1",
        """
        colocate_async.num_warmup_batches sampler.custom_sampler.name sampler.custom_sampler.path
        sampler.max_off_policy_strategy sampler.max_off_policy_threshold sampler.sampler_kwargs
        sampler.sync_refill_failed_groups separate_async.hybrid_rollout.adaptive_switch_threshold
        separate_async.hybrid_rollout.enable_switch separate_async.hybrid_rollout.switch_cost_window_size
        separate_async.hybrid_rollout.switch_threshold_ratio
        separate_async.hybrid_rollout.switch_threshold_release_steps
        separate_async.hybrid_rollout.switch_threshold_step_down separate_async.hybrid_rollout.switch_threshold_step_up
        separate_async.num_warmup_batches separate_async.parameter_sync_step sync trainer_mode
        """,
    ),
    (
        "transfer_queue",
        """
        backend.MooncakeStore.auto_init backend.MooncakeStore.device_name backend.MooncakeStore.global_segment_size
        backend.MooncakeStore.local_buffer_size backend.MooncakeStore.local_hostname
        backend.MooncakeStore.master_server_address backend.MooncakeStore.metadata_server backend.MooncakeStore.protocol
        backend.SimpleStorage.num_data_storage_units backend.SimpleStorage.total_storage_size backend.storage_backend
        enable metrics.enabled metrics.port
        """,
    ),
)
"""(prefixes, names under each of them)."""

OPEN = (
    "actor_rollout_ref.rollout.engine_kwargs",
    "actor_rollout_ref.rollout.checkpoint_engine.engine_kwargs",
    "actor_rollout_ref.model.override_config",
    "actor_rollout_ref.actor.optim.override_optimizer_config",
    "actor_rollout_ref.actor.megatron.override_transformer_config",
    "actor_rollout_ref.actor.megatron.override_ddp_config",
    "actor_rollout_ref.actor.megatron.override_mcore_model_config",
    "actor_rollout_ref.actor.veomni",
    "actor_rollout_ref.actor.torchtitan",
    "actor_rollout_ref.ref.megatron.override_transformer_config",
    "actor_rollout_ref.ref.veomni",
    "actor_rollout_ref.ref.torchtitan",
    "critic.model.override_config",
    "data.apply_chat_template_kwargs",
    "data.mm_processor_kwargs",
    "distillation.teacher_models",
    "ray_kwargs.ray_init",
    "reward.custom_reward_function.reward_kwargs",
    "custom_reward_function.reward_kwargs",
    "reward.reward_kwargs",
    "reward_model.reward_kwargs",
    "trainer.v1.sampler.sampler_kwargs",
    "hydra",
)

REASONS = {
    "actor_rollout_ref": "one process on one device, and the policy samples in it",
    "actor_rollout_ref.actor": "one device; memory is bounded by micro_batch_tokens",
    "actor_rollout_ref.actor.calculate_entropy": "the entropy is in the metrics where a term needs it",
    "actor_rollout_ref.actor.calculate_sum_pi_squared": "not in the metrics",
    "actor_rollout_ref.actor.checkpoint": "checkpoints are whole",
    "actor_rollout_ref.actor.data_loader_seed": "the order follows from seed",
    "actor_rollout_ref.actor.freeze_vision_tower": "text only",
    "actor_rollout_ref.actor.fsdp_config": "one device, no sharding",
    "actor_rollout_ref.actor.megatron": "one device, no sharding",
    "actor_rollout_ref.actor.optim": "for verl's Megatron trainer, or for optimizers other than AdamW",
    "actor_rollout_ref.actor.policy_loss": "read by loss modes that are not here",
    "actor_rollout_ref.actor.profiler": "no profiler",
    "actor_rollout_ref.actor.qat": "no quantisation",
    "actor_rollout_ref.model": "the model is loaded as it is",
    "actor_rollout_ref.model.lora": "read by the Megatron trainer; lora_rank and lora_alpha are here",
    "actor_rollout_ref.model.mtp": "no multi-token prediction",
    "actor_rollout_ref.ref": "the reference is scored like the policy, on the same device",
    "actor_rollout_ref.rollout": "no engine: the policy samples in its own process",
    "actor_rollout_ref.rollout.agent": "no agent loop",
    "actor_rollout_ref.rollout.multi_turn": "single turns only",
    "actor_rollout_ref.rollout.val_kwargs": "evaluation samples from the whole distribution",
    "algorithm": "not here",
    "critic": "no critic",
    "custom_reward_function": "give them as options of the reward",
    "data": "rows are read whole, and prompts are never cut or filtered",
    "data.audio_key": "text only",
    "data.custom_cls": "write the rows into a file",
    "data.image_key": "text only",
    "data.image_patch_size": "text only",
    "data.mm_processor_kwargs": "text only",
    "data.return_multi_modal_inputs": "text only",
    "data.reward_fn_key": "data_source reaches compute_score as a column",
    "data.tokenizer": "the model's own tokenizer",
    "data.video_key": "text only",
    "distillation": "no teacher",
    "global_profiler": "no profiler",
    "hydra": "Hydra's own folder and logging",
    "ray_kwargs": "no Ray",
    "reward": "rewards are functions: [[rewards]] function = 'file.py:compute_score' takes verl's signature",
    "reward_model": "rewards are functions; there is no reward model",
    "sandbox_fusion": "rewards run in processes of this machine",
    "skip": "rollouts are saved by every run, and not replayed",
    "trainer": "one process on one device",
    "trainer.val_only": "gspo eval MODEL scores a model",
    "trainer.v1": "sampling and training take turns",
    "transfer_queue": "one process on one device",
}
"""Why, by prefix; the longest that fits counts."""


def names() -> Iterator[str]:
    for prefixes, under in AREAS:
        for prefix in prefixes.split():
            for name in under.split():
                yield f"{prefix}.{name}"


def is_open(key: str) -> bool:
    """Whether the key stands in a table of free names."""
    return any(key.startswith(f"{prefix}.") for prefix in OPEN)


def reason(key: str) -> str:
    parts = key.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next(REASONS[prefix] for prefix in prefixes if prefix in REASONS)
