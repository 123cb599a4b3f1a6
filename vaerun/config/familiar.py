"""What other libraries call a setting, and its key here: Lightning, timm, pythae, Keras, HuggingFace, textbook code.

Each row has the names (compared without case, `_` and `-`), the keys that they may mean (from the third on: where
none of the first two exists), and a note: what to write if the value differs, too, or why there is no such key.
"""

from __future__ import annotations

ROWS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    # -- training
    ("lr learning_rate learn_rate base_lr init_lr lr_init initial_lr lr_g g_lr generator_lr gen_lr",
     ("trainer.learning_rate",), ""),
    ("lr_d d_lr discriminator_lr disc_lr critic_lr",
     ("trainer.discriminator_learning_rate",), "for adversarial models"),
    ("batch bs batch_size train_batch_size per_device_train_batch_size per_device_batch_size mini_batch "
     "minibatch_size", ("trainer.batch_size",), ""),
    ("eval_batch_size per_device_eval_batch_size test_batch_size val_batch_size validation_batch_size "
     "inference_batch", ("evaluation.chunk",), "latent samples evaluated at once; it changes no result"),
    ("epochs epoch num_epochs n_epochs max_epochs nb_epochs nb_epoch num_train_epochs train_epochs total_epochs",
     ("trainer.epochs",), ""),
    ("max_steps total_steps num_steps max_iter max_iters num_iter n_iter n_iters iterations iters num_iterations "
     "training_steps train_steps num_train_steps max_updates num_updates", ("trainer.max_steps",), ""),
    ("steps n_steps", ("trainer.max_steps", "model.inference.steps"), ""),
    ("optimizer optimiser optim opt optimizer_name opt_name solver optimizer_type optimizer_cls",
     (), "Adam is the only optimiser: leave it out (its settings: trainer.learning_rate, trainer.betas)"),
    ("weight_decay wd l2 l2_reg l2_regularization decay", (), "Adam has no weight decay here: leave it out"),
    ("beta1 beta2 b1 b2 betas adam_beta1 adam_beta2 adam_betas momentum",
     ("trainer.betas",), "a list of Adam's two, such as trainer.betas=[0.5,0.999]"),
    ("eps adam_eps adam_epsilon opt_eps", (), "Adam's epsilon is fixed: leave it out"),
    ("scheduler lr_scheduler lr_schedule sched lr_decay scheduler_name lr_scheduler_type lr_policy milestones "
     "lr_step lr_gamma step_lr decay_rate", ("trainer.schedule",), "constant, cosine, step or burda"),
    ("warmup warmup_epochs warmup_steps warmup_ratio lr_warmup",
     ("estimator.kl_warmup_epochs",), "of the KL weight; the learning rate has no warm-up"),
    ("grad_clip gradient_clip_val gradient_clip clip_grad clip_grad_norm grad_clip_norm max_grad_norm max_norm "
     "clip_value clip gradient_clipping clipnorm grad_norm", ("trainer.clip_norm",), ""),
    ("accumulate_grad_batches gradient_accumulation_steps grad_accum accum_steps accumulation_steps",
     (), "a step takes its whole batch at once: leave it out, and set trainer.batch_size"),
    ("patience early_stop early_stopping_patience early_stop_patience es_patience early_stopping",
     ("trainer.early_stopping",), "a number of validations"),
    ("ema ema_decay use_ema model_ema ema_rate ema_beta moving_average",
     ("trainer.average",), "for adversarial models"),
    ("precision amp fp16 bf16 half mixed_precision use_amp float16 bfloat16 autocast dtype native_amp use_fp16",
     ("trainer.precision",), "trainer.precision=bf16 for mixed precision; float32 is the default"),
    ("torch_compile compile jit use_compile", ("trainer.compile",), "auto, graph or none"),
    ("deterministic cudnn_deterministic use_deterministic_algorithms", ("trainer.deterministic",), ""),
    ("benchmark cudnn_benchmark", (), "nothing is tuned by timing, which could change results: leave it out"),
    # -- devices and workers
    ("gpu gpus gpu_id gpu_ids gpu_index devices device device_id device_ids cuda use_cuda use_gpu no_cuda no_gpu "
     "accelerator cuda_device cuda_visible_devices tpu_cores local_rank",
     ("trainer.device",),
     "trainer.device=auto takes a GPU if there is one, =cuda requires it, =cpu avoids it; trainer.processes=N uses N"),
    ("num_gpus n_gpu n_gpus num_devices world_size nproc nproc_per_node num_processes n_procs strategy ddp "
     "distributed distributed_backend data_parallel num_nodes nnodes dist_backend multi_gpu",
     ("trainer.processes",), "the number of processes that share every batch; each has a GPU of its own"),
    ("num_workers workers n_workers dataloader_num_workers loader_workers num_data_workers pin_memory pin_mem "
     "persistent_workers prefetch_factor prefetch dataloader_pin_memory",
     (), "the data live on the device and none are needed: leave it out"),
    ("num_threads n_threads threads torch_threads", (), "leave it out, and set OMP_NUM_THREADS in the shell"),
    ("shuffle drop_last sampler", (), "every epoch has all images, in a new order: leave it out"),
    ("steps_per_epoch limit_train_steps", ("data.train_images",), "an epoch is one pass over the training images"),
    # -- model
    ("latent_dim latent_dims latent_size latent_dimension z_dim dim_z nz z_size latent latents n_latent "
     "n_latents num_latents latent_features latent_channels code_dim code_size embedding_dim bottleneck "
     "bottleneck_dim noise_dim", ("model.latent_dim",), ""),
    ("hidden hidden_dim hidden_dims hidden_size hidden_sizes hidden_units hidden_features hidden_layers h_dim "
     "n_hidden num_hidden nh layers n_layers num_layers layer_sizes units depth enc_hidden",
     ("model.encoder.hidden", "model.decoder.hidden", "model.generator.hidden", "model.discriminator.hidden",
      "model.generator.dense", "model.discriminator.dense"),
     "a list of widths, such as [256,256]"),
    ("channels filters n_filters num_filters conv_channels ngf ndf nf base_channels dim width widths",
     ("model.encoder.channels", "model.decoder.channels", "model.generator.width", "model.discriminator.width",
      "model.encoder.hidden", "model.decoder.hidden"),
     ""),
    ("activation act act_fn activation_fn activation_function non_linearity",
     ("model.encoder.activation", "model.decoder.activation"), ""),
    ("dropout dropout_rate drop drop_rate p_dropout drop_path", (), "the networks have no dropout: leave it out"),
    ("batch_norm bn use_bn norm norm_layer",
     ("model.generator.batch_norm", "model.discriminator.batch_norm"), "for network=dcgan"),
    ("in_channels image_channels num_channels n_channels input_channels nc in_chans img_channels input_dim "
     "input_size in_features x_dim image_shape img_shape input_shape num_features data_dim",
     (), "it is read from the images: leave it out"),
    ("num_classes n_classes nb_classes n_class y_dim c_dim class_num num_labels",
     (), "it is read from the labels: leave it out"),
    ("cond class_conditional use_labels label_conditional class_cond conditional",
     ("model.conditional",), "true or false"),
    ("prior prior_type prior_name prior_dist",
     (), "the prior is a standard normal: leave it out (model.conditional_prior=true: one per class)"),
    ("arch architecture net net_type backbone network_type encoder_type decoder_type", ("network",), "mlp or conv"),
    ("model_name model_type vae_type algo algorithm method posterior flow flow_type model_cls",
     ("model",), "vaerun --help lists the models"),
    ("refinement_steps inference_steps svi_steps n_flows num_flows flow_length t update_steps",
     ("model.inference.steps",), "for models with iterative inference, such as vlae"),
    # -- objective
    ("loss loss_fn loss_type criterion objective bound elbo_type loss_function",
     ("estimator",), "vaerun --help lists the estimators"),
    ("beta kl_beta kl_weight kl_coef kl_coeff kld_weight kl_scale kl_lambda lambda_kl kl_factor beta_vae "
     "kld_coef", ("estimator.kl_weight",), "for estimator=elbo, elbo_mc and stl"),
    ("kl_anneal kl_annealing kl_anneal_epochs anneal_epochs annealing_epochs kl_warmup kl_warmup_steps "
     "beta_warmup kl_anneal_steps",
     ("estimator.kl_warmup_epochs",), "a number of epochs, for estimator=elbo, elbo_mc and stl"),
    ("free_nats free_bits kl_free_bits kl_floor", ("estimator.free_bits",), "nats per dimension, for estimator=elbo"),
    ("recon_loss reconstruction_loss recon reconstruction likelihood output_dist output_distribution "
     "decoder_dist x_dist decoder_distribution rec_loss", ("model.likelihood",), "gaussian or bernoulli"),
    ("sigma std stddev obs_std x_sigma recon_std decoder_std variance obs_var decoder_var noise_std scale "
     "observation_noise", ("model.fixed_variance",), "a variance; by default it is learned"),
    ("k n_samples num_samples samples importance_samples n_importance_samples num_importance_samples iw_samples "
     "mc_samples n_particles num_particles particles num_mc_samples importance",
     ("evaluation.samples", "estimator.samples", "evaluation.generated.samples"), ""),
    ("iwae_samples train_samples num_iwae_samples training_samples", ("estimator.samples",), ""),
    ("n_critic critic_iters d_steps disc_steps num_d_steps d_iters n_dis discriminator_steps",
     ("estimator.discriminator_steps",), "for adversarial models"),
    ("gp gp_weight lambda_gp gradient_penalty r1_gamma gp_lambda r1_weight",
     ("estimator.r1",), "for adversarial models"),
    ("label_smooth smoothing label_smoothing one_sided_smoothing",
     ("estimator.label_smoothing",), "for adversarial models"),
    # -- data
    ("dataset_name data_name datamodule ds data_set", ("data",), "vaerun --help lists the data sets"),
    ("data_dir data_path data_root data_folder dataset_dir dataset_path dataset_root root train_dir train_path "
     "path train_data data_file",
     ("data.path", "data.root"),
     "data=npz or data=folder with data.path=PATH read your own images; data.root holds prepared files of the others"),
    ("val_split validation_split val_size val_fraction val_frac val_ratio val_percent val_pct validation_size "
     "validation_fraction val num_val n_val validation", ("data.validation",), "a number or a fraction"),
    ("test_split test_size test_fraction test_ratio", (), "the test images are the data set's own: leave it out"),
    ("limit_train_batches train_size n_train num_train max_train_samples subset num_train_samples n_images "
     "num_images train_subset subset_size images", ("data.train_images",), "a number of images"),
    ("limit_val_batches limit_test_batches limit_predict_batches max_eval_samples max_test_samples n_test "
     "num_test eval_images test_images num_eval", ("evaluation.images",), "a number of images"),
    ("binarise binary binarized binarised binarization dynamic_binarization threshold",
     ("data.binarize",), "none, dynamic or fixed"),
    ("dequantization dequantisation uniform_noise dequant uniform_dequantization",
     ("data.dequantize",), "true or false"),
    ("image_size img_size im_size resize resolution crop_size crop imgsz", ("data.image_size",), "for data=folder"),
    ("normalize normalise normalization transform transforms augment augmentation augmentations aug hflip "
     "random_flip flip preprocessing",
     (), "likelihoods refer to the pixels as they are: leave it out, or prepare other data"),
    # -- evaluation, logging, files
    ("seed random_seed manual_seed seed_everything random_state rng_seed torch_seed global_seed seeds", ("seed",), ""),
    ("num_runs n_runs n_seeds num_seeds n_repeats num_repeats num_trials",
     ("trainer.replicas",), "seeds seed, seed+1, ... in one process; or a sweep: -m seed=range(5)"),
    ("log_dir logging_dir output out out_dir output_path output_folder out_path save_dir save_path save_folder "
     "default_root_dir root_dir run_dir results results_dir result_dir checkpoint_dir ckpt_dir model_dir "
     "work_dir exp_dir experiment_dir dirpath exp_name experiment_name run_name exp name version tag project "
     "save outf", ("output_dir",), "the directory of the run"),
    ("overwrite overwrite_output_dir force restart from_scratch",
     ("trainer.resume",), "trainer.resume=never starts over in a new directory"),
    ("resume resume_from resume_from_checkpoint ckpt checkpoint ckpt_path checkpoint_path load load_from "
     "load_path pretrained weights init_from restore load_checkpoint resume_path resume_ckpt model_path finetune",
     ("trainer.resume",), "a run directory or a checkpoint"),
    ("save_every save_freq save_frequency save_interval save_steps save_strategy checkpoint_every "
     "checkpoint_interval save_top_k every_n_epochs save_period steps_saving checkpoint_freq save_epochs",
     ("trainer.checkpoint_seconds",), "seconds between checkpoints; the best parameters are always kept"),
    ("log_every log_interval log_freq log_frequency print_freq print_every print_interval log_every_n_steps "
     "logging_steps log_steps display_freq display_step", ("trainer.log_every",), "a number of steps"),
    ("val_every eval_every check_val_every_n_epoch val_check_interval eval_freq eval_frequency eval_interval "
     "test_interval validate_every val_freq val_interval eval_steps validation_freq test_every "
     "evaluation_strategy eval_strategy every", ("evaluation.every",), "a number of epochs"),
    ("sample_every sample_interval sample_freq vis_every plot_every image_every steps_predict",
     ("evaluation.pictures",), "a number of validations"),
    ("fid compute_fid use_fid calc_fid",
     ("evaluation.inception_weights", "evaluation.quality"),
     "a file of Inception weights; without one, quality=true uses vaerun's own classifier"),
    ("monitor early_stopping_metric metric_for_best_model eval_metric",
     (), "the best validation metric selects the parameters: leave it out"),
    ("tensorboard use_tensorboard logger loggers wandb use_wandb mlflow comet log_to report_to callbacks",
     (), "TensorBoard files and metrics.jsonl are always written: leave it out"),
    ("verbose verbosity quiet progress_bar enable_progress_bar disable_tqdm log_level debug silent",
     (), "there is no such setting: leave it out; run.log and metrics.jsonl hold everything"),
    ("fast_dev_run dry_run overfit_batches smoke_test sanity",
     ("trainer.max_steps",), "a few steps; vaerun --check only checks the command"),
    ("mode eval eval_only test test_only evaluate do_eval do_train do_test phase predict train inference",
     (), "a run trains and then evaluates: leave it out; vaerun-eval run=DIR evaluates a finished run again"),
    ("n_jobs num_jobs jobs parallel max_parallel n_parallel parallel_jobs", ("sweep.jobs",), "for a sweep, -m"),
)  # fmt: skip

BY_NAME = {"".join(c for c in name if c.isalnum()): row for row in ROWS for name in row[0].split()}
"""Rows by name, in the spelling of `plain_name`."""


def plain_name(key: str) -> str:
    """The last part of a key without case, `_` and `-`."""
    return "".join(c for c in key.rpartition(".")[2].lower() if c.isalnum())
