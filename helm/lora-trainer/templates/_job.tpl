{{/*
The Job of a training: the one template that the dispatcher fills in for a message and that the suspended
CronJob has for reruns by hand. The dispatcher adds name, finalizer, style label and request.
*/}}
{{- define "lora-trainer.job" -}}
{{- $labels := merge (include "lora-trainer.jobSelector" . | fromYaml) .Values.trainer.labels -}}
metadata:
  labels:
    {{- toYaml $labels | nindent 4 }}
    {{- with .Values.trainer.kueueQueue }}
    kueue.x-k8s.io/queue-name: {{ . | quote }}
    {{- end }}
  {{- with .Values.trainer.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  backoffLimit: {{ .Values.trainer.backoffLimit | int }}
  activeDeadlineSeconds: {{ .Values.trainer.deadlineSeconds | int }}
  ttlSecondsAfterFinished: {{ .Values.trainer.ttlSecondsAfterFinished | int }}
  podFailurePolicy:
    rules:
      # Usage, bad data, bad configuration: another try ends the same way.
      - action: FailJob
        onExitCodes:
          containerName: trainer
          operator: In
          values: [64, 65, 78]
      # Preemption, eviction and node drains are nobody's fault: they cost no retry.
      - action: Ignore
        onPodConditions:
          - type: DisruptionTarget
            status: "True"
  template:
    metadata:
      labels:
        {{- toYaml $labels | nindent 8 }}
      {{- with .Values.trainer.annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- include "lora-trainer.trainerPod" . | nindent 6 }}
{{- end -}}

{{- define "lora-trainer.trainerPod" -}}
{{- $trainer := .Values.trainer -}}
restartPolicy: Never
terminationGracePeriodSeconds: {{ $trainer.terminationGracePeriodSeconds | int }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $trainer.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $trainer.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $trainer.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- toYaml $trainer.podSecurityContext | nindent 2 }}
{{- with $trainer.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $trainer.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $trainer.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: trainer
    image: {{ include "lora-trainer.image" (dict "image" $trainer.image "appVersion" .Chart.AppVersion) }}
    imagePullPolicy: {{ $trainer.image.pullPolicy }}
    command: [python, -m, trainer, --request, /etc/lora/request.json]
    env:
      {{- include "lora-trainer.trainerEnvironment" . | trim | nindent 6 }}
    {{- with $trainer.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- $resources := deepCopy $trainer.resources }}
    {{- if $trainer.gpus }}
    {{- $_ := set $resources "limits" (merge (dict $trainer.gpuResource ($trainer.gpus | int | toString)) (default dict $resources.limits)) }}
    {{- end }}
    resources:
      {{- toYaml $resources | nindent 6 }}
    securityContext:
      {{- include "lora-trainer.containerSecurityContext" . | nindent 6 }}
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    volumeMounts:
      - name: request
        mountPath: /etc/lora
        readOnly: true
      - name: models
        mountPath: /models
      - name: tmp
        mountPath: /tmp
      - name: shm
        mountPath: /dev/shm
      {{- if .Values.baseModel.image }}
      - name: base-model
        mountPath: /base-model
        readOnly: true
      {{- else if include "lora-trainer.usesCache" . }}
      - name: base-model
        mountPath: /cache
      {{- end }}
      {{- with $trainer.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: request
    downwardAPI:
      items:
        - path: request.json
          fieldRef:
            fieldPath: metadata.annotations['lora-trainer.io/request']
  - name: models
    persistentVolumeClaim:
      claimName: {{ include "lora-trainer.modelsClaim" . }}
  - name: tmp
    emptyDir: {}
  - name: shm
    emptyDir:
      medium: Memory
      sizeLimit: {{ $trainer.sharedMemory }}
  {{- if .Values.baseModel.image }}
  - name: base-model
    image:
      reference: {{ .Values.baseModel.image }}
  {{- else if include "lora-trainer.usesCache" . }}
  - name: base-model
    persistentVolumeClaim:
      claimName: {{ include "lora-trainer.cacheClaim" . }}
  {{- end }}
  {{- with $trainer.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "lora-trainer.trainerEnvironment" -}}
{{- $environment := dict "MODELS_DIR" "/models" "REQUIRE_CUDA" (ternary "true" "false" (and .Values.trainer.requireCuda (gt (int .Values.trainer.gpus) 0))) -}}
{{- with .Values.baseModel -}}
{{- if .image -}}
{{- $_ := set $environment "BASE_MODEL" (trimSuffix "/" (printf "/base-model/%s" .imagePath)) -}}
{{- else if .path -}}
{{- $_ := set $environment "BASE_MODEL" .path -}}
{{- else -}}
{{- $_ := set $environment "BASE_MODEL" .id -}}
{{- with .revision }}{{ $_ := set $environment "BASE_MODEL_REVISION" . }}{{ end -}}
{{- if .cache.enabled }}{{ $_ := set $environment "HF_HOME" "/cache/huggingface" }}{{ end -}}
{{- end -}}
{{- if or .offline .image .path }}{{ $_ := set $environment "HF_HUB_OFFLINE" "1" }}{{ end -}}
{{- end -}}
{{- with .Values.s3 -}}
{{- with .bucket }}{{ $_ := set $environment "S3_BUCKET" . }}{{ end -}}
{{- if .bucket }}{{ $_ := set $environment "S3_PREFIX" .prefix }}{{ end -}}
{{- with .endpoint }}{{ $_ := set $environment "AWS_ENDPOINT_URL" . }}{{ end -}}
{{- with .region }}{{ $_ := set $environment "AWS_REGION" . }}{{ $_ := set $environment "AWS_DEFAULT_REGION" . }}{{ end -}}
{{- end -}}
{{- if or .Values.s3.existingSecret .Values.s3.accessKeyId -}}
{{- $secret := include "lora-trainer.s3Secret" . -}}
{{- range $key := list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" -}}
{{- $_ := set $environment $key (dict "valueFrom" (dict "secretKeyRef" (dict "name" $secret "key" $key))) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := .Values.trainer.extraEnv }}{{ $_ := set $environment $name $value }}{{ end -}}
{{- include "lora-trainer.environment" $environment -}}
{{- end -}}
